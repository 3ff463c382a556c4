"""The static k/v cache: the only owner of T3's keys and values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import T3Config
from ..models.layers import attend

GRAIN = 64  # positions: the step in which the live part grows


@dataclass
class StaticKVCache:
    """k and v are (layers, rows, heads, positions, head_dim). A request owns one row, or two with guidance."""

    k: Tensor
    v: Tensor
    clean: int = 0  # positions below this hold numbers, not what memory happened to hold

    @classmethod
    def allocate(
        cls, config: T3Config, rows: int, length: int, device: torch.device, dtype: torch.dtype
    ) -> StaticKVCache:
        shape = (config.layers, rows, config.heads, length, config.head_dim)
        # empty: a page of a long row costs memory only once it is written
        return cls(*(torch.empty(shape, device=device, dtype=dtype) for _ in range(2)))

    @property
    def rows(self) -> int:
        return self.k.shape[1]

    @property
    def length(self) -> int:
        return self.k.shape[3]

    def fits(self, rows: int, length: int) -> bool:
        return rows <= self.rows and length <= self.length

    def clear(self, upto: int) -> None:
        """Make [clean, upto) finite in every row: a masked position's weight is 0, but 0 times NaN is NaN."""
        upto = min(self.length, -(-upto // GRAIN) * GRAIN)
        if upto > self.clean:
            self.k[:, :, :, self.clean : upto].zero_()
            self.v[:, :, :, self.clean : upto].zero_()
            self.clean = upto

    def move(self, source: int, target: int, length: int) -> None:
        """Row `source` takes the place of row `target`."""
        for tensor in (self.k, self.v):
            tensor[:, target, :, :length] = tensor[:, source, :, :length]

    def paste(self, rows: list[int], k: Tensor, v: Tensor) -> None:
        """The same prefix, k and v (layers, heads, P, head_dim), at the start of each of these rows."""
        for row in rows:
            self.k[:, row, :, : k.shape[2]] = k
            self.v[:, row, :, : v.shape[2]] = v


@dataclass
class Prefill:
    """As T3's `kv`: writes T positions from `start` of neighbouring rows, each attending to all before it."""

    cache: StaticKVCache
    first: int  # row
    start: int  # position

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        end = self.start + k.shape[2]
        whole = []
        for tensor, new in ((self.cache.k, k), (self.cache.v, v)):
            part = tensor[layer, self.first : self.first + len(k), :, :end]
            part[:, :, self.start :] = new
            whole.append(part)
        return attend(q, *whole, causal_mask(self.start, end, q.device))


@dataclass
class Decode:
    """As T3's `kv`: writes one position a row, `positions` (R,), and attends to the live part of the first R rows."""

    cache: StaticKVCache
    positions: Tensor
    live: int
    mask: Tensor | None = None  # (R, 1, 1, live), True = attend
    uniform: int | None = None  # the position, where all rows stand at the same one: a slice beats a scatter
    flash: bool = False
    kernel: Callable | None = None  # kernels.attention.decode, which needs none of the mask, nor of `uniform`

    @property
    def fused(self) -> Callable | None:
        return None if self.kernel is None else self._fused

    def _fused(self, layer: int, qkv: Tensor, rope: Tensor | None) -> Tensor:
        keys, values = self.cache.k[layer, : len(qkv)], self.cache.v[layer, : len(qkv)]
        return self.kernel(qkv, rope, keys, values, self.positions, self.live)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = len(k)
        keys, values = self.cache.k[layer, :rows], self.cache.v[layer, :rows]
        if self.flash:
            return self._flash(q, k, v, keys, values)
        if self.uniform is not None:  # select, narrow: a host that does little else feels what indexing costs it
            keys.select(2, self.uniform).copy_(k.select(2, 0))
            values.select(2, self.uniform).copy_(v.select(2, 0))
        else:
            index = self.positions.view(rows, 1, 1, 1).expand(-1, k.shape[1], 1, k.shape[3])
            keys.scatter_(2, index, k)
            values.scatter_(2, index, v)
        return attend(q, keys.narrow(2, 0, self.live), values.narrow(2, 0, self.live), self.mask)

    def _flash(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """flash-attn writes the new position itself and reads each row to its own length, in (B, S, H, Dh) order."""
        from flash_attn import flash_attn_with_kvcache

        lengths = self.positions.to(torch.int32)
        new = (t.transpose(1, 2) for t in (q, keys, values, k, v))
        q, keys, values, k, v = new
        return flash_attn_with_kvcache(q, keys, values, k=k, v=v, cache_seqlens=lengths, causal=True).flatten(2)


def causal_mask(start: int, end: int, device: torch.device) -> Tensor:
    """(end - start, end): positions from `start` on see all up to themselves."""
    span = torch.arange(end, device=device)
    return span <= span[start:, None]
