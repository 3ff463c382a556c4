"""engine.mel with the flow in MLX. Rows, noise and batches stay in torch, on the host."""

from __future__ import annotations

import mlx.core as mx
from torch import Tensor

from ..engine.flow_graphs import FlowGraphs
from ..engine.mel import FRAMES_AT_ONCE, ROWS_AT_ONCE, MelRunner
from ..models import flow as torch_flow
from ..options import EngineOptions
from .arrays import CPU
from .flow import Flow


class MlxMelRunner(MelRunner):
    at_once = 1  # there is one GPU

    def __init__(self, flow: torch_flow.Flow, options: EngineOptions) -> None:
        self.flow = Flow(flow.config, flow.state_dict().items(), options.s3gen_dtype, lend_to=flow)
        self.euler = self.flow.euler
        self.options, self.device, self.bucket = options, CPU, options.mel_bucket
        self._schedules: dict[int, tuple[Tensor, mx.array]] = {}
        self.graphs = FlowGraphs(self)  # never capture

    def fits(self, rows: int, frames: int) -> bool:
        return rows == 1 or (rows <= ROWS_AT_ONCE and rows * frames <= FRAMES_AT_ONCE)

    def encode(
        self, ids: Tensor, prompt: Tensor, xvector: Tensor, lengths: Tensor, *, full: bool
    ) -> tuple[tuple[mx.array, mx.array], mx.array | None]:
        return self.flow.conditions(ids, prompt, xvector, None if full else lengths)

    def schedule(self, steps: int) -> tuple[Tensor, mx.array]:
        if steps not in self._schedules:
            span = torch_flow.time_span(steps, self.flow.config.meanflow, self.options.cfm_schedule)
            self._schedules[steps] = span, self.flow.time_table(span)
        return self._schedules[steps]
