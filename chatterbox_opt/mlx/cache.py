"""T3's keys and values in MLX, and how a step reads and writes them. MLX arrays are immutable: an update makes a new
array, which MLX computes in the memory of the old one if nothing else references that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from ..config import T3Config
from ..engine.prefix import Prefix

GRAIN = 256  # positions: the cache grows by multiples of this


class RowCache:
    """Keys and values of all live rows, in the order of the step's rows, as long as the longest row needs."""

    def __init__(self, config: T3Config, dtype: mx.Dtype) -> None:
        self._layers, self._dtype, self._inner = config.layers, dtype, (config.heads, 0, config.head_dim)
        self.clear()

    def clear(self) -> None:
        heads, _, dim = self._inner
        self.k = [mx.zeros((0, heads, GRAIN, dim), self._dtype) for _ in range(self._layers)]
        self.v = list(self.k)
        mx.eval(self.k)

    @property
    def rows(self) -> int:
        return self.k[0].shape[0]

    @property
    def length(self) -> int:
        return self.v[-1].shape[2]  # the last one to grow

    def grow(self, upto: int) -> None:
        """Makes room for positions below `upto`. New positions are zeroed: a masked position's weight is 0, but 0 times
        NaN or infinity is NaN."""
        if upto > self.length:
            length = -(-upto // GRAIN) * GRAIN
            self._replace(lambda x: _pad(x, length - x.shape[2]))
            mx.clear_cache()  # buffers of the old length are of no more use

    def append(self, k: Sequence[mx.array], v: Sequence[mx.array]) -> None:
        """Appends rows, (rows, heads, T, head_dim) per layer."""
        length = k[0].shape[2]
        self.grow(length)
        new = iter([_pad(x, self.length - length) for x in (*k, *v)])
        self._replace(lambda x: mx.concatenate([x, next(new)]))

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps these rows only, in this order."""
        if list(rows) == list(range(self.rows)):
            return
        if not rows:
            self.clear()
        else:
            index = mx.array(list(rows))
            self._replace(lambda x: x[index])
        mx.clear_cache()

    def _replace(self, change: Callable[[mx.array], mx.array]) -> None:
        """Replaces one layer at a time, so that at most one is in memory twice."""
        for arrays in (self.k, self.v):
            for i in range(len(arrays)):
                arrays[i] = change(arrays[i])
                mx.eval(arrays[i])


def _pad(x: mx.array, positions: int) -> mx.array:
    return mx.pad(x, [(0, 0), (0, 0), (0, positions), (0, 0)]) if positions else x


class Prefill:
    """T3's `kv` argument for a text behind a voice's prefix: attends causally and collects the keys and values of
    both."""

    def __init__(self, prefix: Prefix | None, scale: float) -> None:
        self.prefix, self.scale = prefix, scale
        self.k: list[mx.array] = []
        self.v: list[mx.array] = []

    def __call__(self, layer: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        if self.prefix is not None:
            k, v = (self._behind(old[layer], new) for old, new in ((self.prefix.k, k), (self.prefix.v, v)))
        self.k.append(k)
        self.v.append(v)
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=self.scale, mask="causal")

    @staticmethod
    def _behind(old: Any, new: mx.array) -> mx.array:
        return mx.concatenate([mx.broadcast_to(old, (new.shape[0], *old.shape)), new], axis=2)


class Decode:
    """T3's `kv` argument for a step: writes one position per row, `positions` (R,), and attends to all positions up to
    it. The updated arrays replace `k` and `v`."""

    def __init__(self, k: list[mx.array], v: list[mx.array], positions: mx.array, scale: float) -> None:
        self.k, self.v, self.scale = k, v, scale
        self.index = positions[:, None, None, None]
        self.mask = mx.arange(k[0].shape[2]) <= self.index

    def __call__(self, layer: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        for arrays, new in ((self.k, k), (self.v, v)):
            arrays[layer] = mx.put_along_axis(arrays[layer], mx.broadcast_to(self.index, new.shape), new, axis=2)
        return mx.fast.scaled_dot_product_attention(q, self.k[layer], self.v[layer], scale=self.scale, mask=self.mask)
