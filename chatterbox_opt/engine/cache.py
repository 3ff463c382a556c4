"""The static k/v cache: the only owner of T3's keys and values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import T3Config
from ..models.layers import attend, rotate_

GRAIN = 64  # positions: the step in which the live part grows


@dataclass
class StaticKVCache:
    """One tensor: a step writes keys and values at once. A request owns one row, or two with guidance."""

    kv: Tensor  # (layers, 2, rows, heads, positions, head_dim)
    clean: int = 0  # positions below this hold numbers, not what memory happened to hold

    @classmethod
    def allocate(
        cls, config: T3Config, rows: int, length: int, device: torch.device, dtype: torch.dtype
    ) -> StaticKVCache:
        # empty: a page of a long row costs memory only once it is written
        shape = (config.layers, 2, rows, config.heads, length, config.head_dim)
        return cls(torch.empty(shape, device=device, dtype=dtype))

    @property
    def k(self) -> Tensor:
        return self.kv[:, 0]

    @property
    def v(self) -> Tensor:
        return self.kv[:, 1]

    @property
    def rows(self) -> int:
        return self.kv.shape[2]

    @property
    def length(self) -> int:
        return self.kv.shape[4]

    def fits(self, rows: int, length: int) -> bool:
        return rows <= self.rows and length <= self.length

    def clear(self, upto: int) -> None:
        """Make [clean, upto) finite in every row: a masked position's weight is 0, but 0 times NaN is NaN."""
        upto = min(self.length, -(-upto // GRAIN) * GRAIN)
        if upto > self.clean:
            self.kv[..., self.clean : upto, :].zero_()
            self.clean = upto

    def move(self, source: int, target: int, length: int) -> None:
        """Row `source` takes the place of row `target`."""
        self.kv[:, :, target, :, :length] = self.kv[:, :, source, :, :length]

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
    flash: bool = False
    kernel: Callable | None = None  # kernels.attention.decode, which needs no mask

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


class DecodeLevel:
    """As Decode, where all rows stand at one position: no mask, no scatter, and every layer's views made at once. On a
    CPU an operation costs more than what it computes here, so what counts is how few there are."""

    def __init__(self, cache: StaticKVCache, rows: int, position: int) -> None:
        mine = cache.kv[:, :, :rows]
        live = mine[..., : position + 1, :]
        self.rows = rows
        self.keys, self.values = live[:, 0].unbind(), live[:, 1].unbind()
        self.new = mine[..., position, :].transpose(1, 2).unbind()  # each (R, 2, H, Dh)

    def fused(self, layer: int, qkv: Tensor, rope: Tensor | None) -> Tensor:
        heads = qkv.view(self.rows, 3, -1, self.new[0].shape[-1])
        if rope is not None:
            rotate_(heads.narrow(1, 0, 2), rope)
        self.new[layer].copy_(heads.narrow(1, 1, 2))
        q = heads.select(1, 0).unsqueeze(2)
        return attend(q, self.keys[layer], self.values[layer])


def causal_mask(start: int, end: int, device: torch.device) -> Tensor:
    """(end - start, end): positions from `start` on see all up to themselves."""
    span = torch.arange(end, device=device)
    return span <= span[start:, None]
