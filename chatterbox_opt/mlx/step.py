"""A step of T3, one token per live slot, as a function of arrays, which MLX can compile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import mlx.core as mx

from ..engine.endings import BROKEN
from ..engine.sampling import Filters, RowParams
from .cache import Decode
from .sampling import guide, next_token
from .t3 import T3


class Rows(NamedTuple):
    """Arrays that do not change within a block."""

    slot_of_row: mx.array  # (R,)
    cond: mx.array  # (N,), rows
    uncond: mx.array
    params: list[mx.array]  # RowParams'


class State(NamedTuple):
    """Arrays that every step updates."""

    token: mx.array  # (N,) drawn last
    step: mx.array  # (N,)
    position: mx.array  # (R,)
    seen: mx.array  # (N, V)
    k: list[mx.array]  # (R, heads, length, head_dim) of each layer
    v: list[mx.array]


class Steps:
    """`compiled`: traced once per set of filters and shape. On a CPU that starts a C++ compiler."""

    def __init__(self, t3: T3, compiled: bool) -> None:
        self.t3, self.compiled = t3, compiled
        self._known: dict[Filters, Callable] = {}

    def run(self, filters: Filters, rows: Rows, state: State, noise: mx.array) -> tuple[mx.array, State]:
        """`noise` (N, V) -> (N,) tokens, BROKEN where logits are not finite, and the next state."""
        if filters not in self._known:
            step = partial(self._step, filters)
            self._known[filters] = mx.compile(step) if self.compiled else step
        drawn, *state = self._known[filters](rows, state, noise)
        return drawn, State(*state)

    def _step(self, filters: Filters, rows: Rows, state: State, noise: mx.array) -> tuple:
        rows, state, t3 = Rows(*rows), State(*state), self.t3
        x = t3.embed_speech(state.token, state.step)[rows.slot_of_row][:, None]
        kv = Decode(state.k, state.v, state.position, t3.config.head_dim**-0.5)
        logits = t3.logits(t3(x, state.position, kv)[:, 0])
        drawn, token, seen = self.pick(logits, rows, state.seen, noise, filters)
        return drawn, token, state.step + 1, state.position + 1, seen, kv.k, kv.v

    def pick(
        self, logits: mx.array, rows: Rows, seen: mx.array, noise: mx.array, filters: Filters
    ) -> tuple[mx.array, mx.array, mx.array]:
        """(R, V) logits -> (N,) tokens, BROKEN where logits are not finite; (N,) tokens without BROKEN; (N, V) `seen`
        with these added."""
        params, gpt = RowParams(*rows.params), self.t3.config.is_gpt
        finite = (logits < float("inf")).all(-1)
        finite = finite[rows.cond] & finite[rows.uncond]
        guided = logits[rows.cond]
        if not gpt:
            guided = guide(guided, logits[rows.uncond], params.cfg)
        token = next_token(guided, seen, noise, params, filters, turbo=gpt)
        seen = mx.put_along_axis(seen, token[:, None], mx.array(True), axis=1)
        return mx.where(finite, token, BROKEN), token, seen
