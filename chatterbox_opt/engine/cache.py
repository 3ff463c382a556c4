"""T3's keys and values, and how a step reads and writes them.

On CUDA, or if steps are captured, the rows of all slots share one static tensor. Elsewhere each slot has its own
(own_rows.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import T3Config
from ..models import layers

GRAIN = 64  # positions: the live part grows by multiples of this


def empty_kv(config: T3Config, rows: int, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Returns (layers, 2, rows, heads, length, head_dim). Unwritten pages of a long row take no memory."""
    shape = config.layers, 2, rows, config.heads, length, config.head_dim
    if device.type == "cpu" and torch.are_deterministic_algorithms_enabled():  # then torch.empty writes to all of them
        memory = torch.UntypedStorage(math.prod(shape) * dtype.itemsize, device=device)
        return torch.empty(0, device=device, dtype=dtype).set_(memory, 0, shape)
    return torch.empty(shape, device=device, dtype=dtype)


def paste(kv: Tensor, row: int, k: Tensor, v: Tensor) -> None:
    """Copies a prefix, k and v (layers, heads, P, head_dim), to the start of a row."""
    kv[:, 0, row, :, : k.shape[2]] = k
    kv[:, 1, row, :, : v.shape[2]] = v


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """layers.attend on every device."""
    if q.device.type == "mps":  # up to torch 2.11 the kernel for few queries takes q's rows to lie next to each other
        q = q.contiguous()
    return layers.attend(q, k, v, mask, causal)


@dataclass
class StaticKVCache:
    """The rows of all slots in one tensor at a fixed address, as graphs need it."""

    kv: Tensor  # (layers, 2, rows, heads, positions, head_dim)
    clean: int = 0  # positions below this are initialized

    @property
    def length(self) -> int:
        return self.kv.shape[4]

    def clear(self, upto: int) -> None:
        """Zeroes [clean, upto) in every row: a masked position's weight is 0, but 0 times NaN is NaN."""
        upto = min(self.length, -(-upto // GRAIN) * GRAIN)
        if upto > self.clean:
            self.kv[..., self.clean : upto, :].zero_()
            self.clean = upto

    def wipe(self, rows: Sequence[int], start: int = 0, end: int | None = None) -> None:
        """Zeroes positions of these rows, as is needed where numbers may not be finite."""
        for row in rows:
            self.kv[:, :, row, :, start:end] = 0

    def move(self, source: int, target: int, length: int) -> None:
        """Moves `length` positions of row `source` to row `target`. Zeroes are left: the newest may not be finite."""
        self.kv[:, :, target, :, :length] = self.kv[:, :, source, :, :length]
        self.wipe([source], 0, length)


@dataclass
class Prefill:
    """T3's `kv` argument: writes T positions from `start` on in all rows of `kv`, each attending to all before it."""

    kv: Tensor  # (layers, 2, R, heads, length, head_dim)
    start: int  # position
    mask: Tensor | None = None  # of the first layer, for the others

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        end = self.start + k.shape[2]
        if self.mask is None:
            self.mask = causal_mask(self.start, end, q.device)
        keys, values = self.kv[layer, :, :, :, :end]
        keys[:, :, self.start :] = k
        values[:, :, self.start :] = v
        return attend(q, keys, values, self.mask)


@dataclass
class Decode:
    """T3's `kv` argument: writes one position per row, `positions` (R,), and attends to the live part of R rows."""

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
        keys, values = self.cache.kv[layer, :, : len(qkv)]
        return self.kernel(qkv, rope, keys, values, self.positions, self.live)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = len(k)
        keys, values = self.cache.kv[layer, :, :rows]
        if self.flash:
            return self._flash(q, k, v, keys, values)
        index = self.positions.view(rows, 1, 1, 1).expand(-1, k.shape[1], 1, k.shape[3])
        keys.scatter_(2, index, k)
        values.scatter_(2, index, v)
        return attend(q, keys.narrow(2, 0, self.live), values.narrow(2, 0, self.live), self.mask)

    def _flash(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Calls flash-attn, which writes the new position itself and reads each row up to its own length, in
        (B, S, H, Dh) order."""
        from flash_attn import flash_attn_with_kvcache

        lengths = self.positions.to(torch.int32)
        new = (t.transpose(1, 2) for t in (q, keys, values, k, v))
        q, keys, values, k, v = new
        return flash_attn_with_kvcache(q, keys, values, k=k, v=v, cache_seqlens=lengths, causal=True).flatten(2)


def causal_mask(start: int, end: int, device: torch.device) -> Tensor:
    """Returns (end - start, end), True = attend: positions from `start` on see all up to themselves."""
    span = torch.arange(end, device=device)
    return span <= span[start:, None]
