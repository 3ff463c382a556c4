"""The flow as CUDA graphs: per shape one that encodes and one Euler step, whatever the number of steps."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..config import FRAMES_PER_TOKEN, MEL_BINS, SPEECH_CODES
from .agreement import ripples
from .graphs import Captured, bucket, on_trial
from .held import held

if TYPE_CHECKING:
    from .mel import MelRunner, Solve

LONGEST = 3000  # frames of a captured step, prompt included; longer ones run eagerly


@dataclass(eq=False)
class Held:
    """The tensors that the graphs of one shape read and write."""

    inputs: list[Tensor]  # ids (B, n), prompt (B, T, 80), xvector (B, 192), lengths (B,)
    x: Tensor  # (B, T, 80)
    time: Tensor  # (stages, C)
    dt: Tensor  # ()
    conditions: tuple[Tensor, Tensor]  # Flow.conditions
    mask: Tensor
    owner: Solve | None = None  # whose conditions these are

    def keep(self, conditions: tuple[Tensor, Tensor], mask: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        for mine, new in zip((*self.conditions, self.mask), (*conditions, mask)):
            mine.copy_(new)
        return self.conditions, self.mask

    def spoil(self) -> None:
        for mine in (*self.conditions, self.mask):
            mine.zero_()


class FlowGraphs:
    """Captured at first use, or in advance by warmup()."""

    def __init__(self, runner: MelRunner) -> None:
        self.runner: MelRunner = weakref.proxy(runner)  # which has these graphs: a cycle would keep their memory
        self.flow, self.options, self.device = runner.flow, runner.options, runner.device
        # never by torch.compile, which would take too long for one network at each of many lengths
        recorded = self.options.compile and self.options.records("flow") and self.device.type == "cuda"
        trial = on_trial("flow", self.options, self.options.s3gen_dtype)
        self.captured = Captured("cudagraph" if recorded else None, self.device, trial=trial)
        self._held: dict[tuple[int, int], Held | None] = {}  # None: it could not be captured

    @property
    def on(self) -> bool:
        return self.captured.on

    def key(self, rows: int, frames: int) -> tuple[int, int] | None:
        """Returns the (rows, frames) of the graphs to use; None for what runs eagerly."""
        size = captured_size(frames, self.options.mel_bucket)
        return None if not self.on or size is None or not self.runner.fits(rows, frames) else (bucket(rows), size)

    def shapes(self, batch: int) -> list[tuple[int, int]]:
        """Returns the (rows, frames) that a warm-up for `batch` utterances captures, the most rows first."""
        some = ((rows, size) for rows in (16, 8, 4, 2, 1) for size in reversed(sizes(self.options.mel_bucket)))
        return [(rows, size) for rows, size in some if rows <= bucket(batch) and self.runner.fits(rows, size)]

    def planned(self, batch: int) -> list[tuple]:
        """Returns the keys of all graphs of these shapes."""
        return [graph for shape in self.shapes(batch) for graph in self._graphs_of(shape)]

    def _graphs_of(self, shape: tuple[int, int]) -> list[tuple]:
        steps = [("step", *shape, unguided) for unguided in {False, self.options.cfg_off_last > 0}]
        return [("encode", *shape), *steps]

    def capture(self, key: tuple[int, int]) -> bool:
        """Captures the graphs of a shape unless that is done; returns whether they can be used."""
        return held(self._held, key, self.captured, partial(self._prepare, key)) is not None

    def _prepare(self, key: tuple[int, int]) -> Held | None:
        made = self._hold(key)
        if not self.captured.prepare(("encode", *key), self._encode_of(made), spoil=made.spoil):
            return None
        for graph in self._graphs_of(key)[1:]:
            if not self.captured.prepare(graph, self._step_of(made, unguided=graph[-1])):
                return None
        return made

    def _hold(self, key: tuple[int, int]) -> Held:
        (rows, size), device = key, self.device
        n, width = size // FRAMES_PER_TOKEN, self.flow.spk_embed_affine_layer.in_features
        span, times = self.runner.schedule(self.flow.config.default_steps)
        ids = torch.arange(rows * n, device=device).view(rows, n) * 7919 % SPEECH_CODES
        some = [ripples(*shape, device=device) for shape in ((rows, size, MEL_BINS), (rows, width))]
        inputs = [ids, *some, torch.full((rows,), n, device=device)]
        # always masked, so that every length in its bucket runs through the same graph
        known = self.runner.encode(*inputs, full=False)
        return Held(inputs, some[0].clone(), times[0].clone(), span[1] - span[0], *known)

    def encode(self, solve: Solve, inputs: list[Tensor]) -> None:
        if not self.capture(solve.key):
            solve.key = None
            solve.conditions, solve.mask = self.runner.encode(*inputs, full=False)
            return
        mine = self._held[solve.key]
        self._set_aside(mine)
        for tensor, given in zip(mine.inputs, inputs):
            tensor[: len(given)].copy_(given)  # unused rows keep finite numbers of an earlier call
        self.captured.run(("encode", *solve.key), self._encode_of(mine))
        mine.owner = solve

    def advance(self, solve: Solve, time: Tensor, dt: Tensor, unguided: bool) -> None:
        mine = self._held[solve.key]
        if mine.owner is not solve:
            self._set_aside(mine)
            mine.keep(solve.conditions, solve.mask)
            mine.owner = solve
        n = len(solve.rows)
        mine.x[:n].copy_(solve.x)
        mine.time.copy_(time)
        mine.dt.copy_(dt)
        solve.x = self.captured.run(("step", *solve.key, unguided), self._step_of(mine, unguided))[:n].clone()

    def _encode_of(self, mine: Held) -> Callable[[], tuple[tuple[Tensor, Tensor], Tensor]]:
        """Steps of other shapes may be replayed between this and the steps of its own shape, so it leaves its results
        in tensors outside of the graphs' memory."""
        return lambda: mine.keep(*self.runner.encode(*mine.inputs, full=False))

    def _step_of(self, mine: Held, unguided: bool) -> Callable[[], Tensor]:
        return lambda: self.runner.euler(mine.x, mine.time, mine.dt, mine.conditions, mine.mask, unguided)

    @staticmethod
    def _set_aside(mine: Held) -> None:
        """Copies what the owner of these tensors still needs to the owner, before another solve overwrites them."""
        owner, mine.owner = mine.owner, None
        if owner is not None and not owner.done:
            owner.conditions, owner.mask = tuple(t.clone() for t in mine.conditions), mine.mask.clone()


@cache
def sizes(step: int) -> tuple[int, ...]:
    """Returns the frames of captured steps: multiples of `step`, an eighth of their length apart where that is more."""
    out, size, step = [], 0, step + step % FRAMES_PER_TOKEN
    while size < LONGEST:
        size += max(step, size // 8 // step * step)
        out.append(size)
    return tuple(out)


def captured_size(frames: int, step: int) -> int | None:
    return next((size for size in sizes(step) if size >= frames), None)
