"""Who is being spoken right now: one lane a request, one or two cache rows a lane, packed from the front."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..config import START_SPEECH, T3Config
from .cache import StaticKVCache
from .sampling import RowParams


@dataclass
class Lane:
    """The host's view of a request."""

    index: int  # in the caller's list
    request: Any
    slot: int  # row of the per-lane tensors
    cond: int  # cache row
    uncond: int  # cache row, or `cond` again without guidance
    position: int = 0  # where the next token will be written
    tokens: list[int] = field(default_factory=list)
    seen_until: int = 0  # tokens already searched for the end
    state: Tensor | None = None  # of the generator, before the block that is being drawn
    stopped: str | None = None

    @property
    def greedy(self) -> bool:
        return self.request.sampling.temperature == 0

    def row_list(self) -> list[int]:
        return [self.cond] if self.cond == self.uncond else [self.cond, self.uncond]


class Lanes:
    """The device's view: per-lane (N, ...) and per-row (R,) tensors that never move."""

    def __init__(self, capacity: int, config: T3Config, device: torch.device) -> None:
        def zeros(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.capacity, self.config, self.device = capacity, config, device
        self.active: list[Lane] = []
        self.rows = 0
        self.token, self.step = zeros(capacity), zeros(capacity)
        self.cond, self.uncond = zeros(capacity), zeros(capacity)
        self.seen = zeros(capacity, config.speech_vocab, dtype=torch.bool)
        self.noise = torch.ones(capacity, config.speech_vocab, device=device)
        self.params = RowParams(
            *(zeros(capacity, 1, dtype=torch.float32) for _ in range(4)), top_k=zeros(capacity, 1),
            penalty=torch.ones(capacity, 1, device=device),
        )
        self.lane_of_row, self.position, self.span = zeros(0), zeros(0), zeros(0)

    def fit_rows(self, rows: int, length: int = 8192) -> None:
        if len(self.position) < rows:
            self.lane_of_row = torch.zeros(rows, dtype=torch.long, device=self.device)
            self.position = torch.zeros_like(self.lane_of_row)
        if len(self.span) < length:
            self.span = torch.arange(length, device=self.device)

    def clear(self) -> None:
        self.active, self.rows = [], 0
        for tensor in (self.token, self.step, self.cond, self.uncond, self.lane_of_row, self.position):
            tensor.zero_()
        self.seen.zero_()

    def add(self, index: int, request: Any) -> Lane:
        slot, sampling = len(self.active), request.sampling
        lane = Lane(index, request, slot, self.rows, self.rows + request.rows - 1)
        self.active.append(lane)
        self.rows += request.rows
        self.step[slot] = 0
        self.seen[slot] = False
        self.seen[slot, START_SPEECH] = True
        self.params.cfg[slot] = float(sampling.cfg_weight)
        self.params.temperature[slot] = float(sampling.temperature)
        self.params.min_p[slot] = float(sampling.min_p)
        self.params.top_p[slot] = float(sampling.top_p)
        self.params.top_k[slot] = int(sampling.top_k)
        self.params.penalty[slot] = float(sampling.repetition_penalty)
        return lane

    def upload(self) -> None:
        """The host's rows and positions -> the device. What lies behind them is computed too where a captured batch is
        wider than the lanes there are: it is lane 0 again, far from the ends of all tables."""
        owner, position = [0] * len(self.position), [0] * len(self.position)
        for lane in self.active:
            for row in lane.row_list():
                owner[row], position[row] = lane.slot, lane.position
        self.lane_of_row.copy_(torch.tensor(owner))
        self.position.copy_(torch.tensor(position))
        none = [(0, 0)] * (self.capacity - len(self.active))
        rows = torch.tensor([(lane.cond, lane.uncond) for lane in self.active] + none).to(self.device)
        self.cond[:], self.uncond[:] = rows[:, 0], rows[:, 1]
        self.step[len(self.active) :] = 0

    def params_of(self, span: slice) -> RowParams:
        return RowParams(*(tensor[span] for tensor in vars(self.params).values()))

    def collect(self, lanes: list[Lane], tokens: Tensor) -> None:
        """(n, k) drawn tokens to the host: the one point where it waits for the device."""
        for lane, drawn in zip(lanes, tokens.tolist()):
            lane.tokens += drawn

    def compact(self, cache: StaticKVCache) -> None:
        """Close the gaps that finished lanes leave, so that no step computes a row nobody hears."""
        kept = [lane for lane in self.active if lane.stopped is None]
        if len(kept) == len(self.active):
            return
        rows = sum(len(lane.row_list()) for lane in kept)
        used = {row for lane in kept for row in lane.row_list()}
        holes = [row for row in range(rows) if row not in used]
        for lane in kept:
            guided = lane.cond != lane.uncond
            if lane.cond >= rows:
                cache.move(lane.cond, target := holes.pop(), lane.position)
                lane.cond = target
            if not guided:
                lane.uncond = lane.cond
            elif lane.uncond >= rows:
                cache.move(lane.uncond, target := holes.pop(), lane.position)
                lane.uncond = target
        index = torch.tensor([lane.slot for lane in kept], dtype=torch.long, device=self.device)
        for tensor in (self.token, self.step, self.seen, *vars(self.params).values()):
            tensor[: len(kept)] = tensor[index]
        for slot, lane in enumerate(kept):
            lane.slot = slot
        self.active, self.rows = kept, rows
        if kept:
            self.upload()
