"""The Snake activation in one pass over memory, computed in float32. Its plain-torch twin is models/hift.snake."""

from __future__ import annotations

import torch
from torch import Tensor

from .language import tl, triton

BLOCK = 1024


if triton is not None:

    @triton.jit
    def _snake(x, scale, out, n, channels, SCALED: tl.constexpr, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = i < n
        u = tl.load(x + i, mask=inside).to(tl.float32)
        if SCALED:
            u = u * tl.load(scale + i % channels, mask=inside).to(tl.float32)
        wave = tl.sin(u)
        tl.store(out + i, (u + wave * wave).to(out.dtype.element_ty), mask=inside)


def snake(x: Tensor, scale: Tensor | None = None) -> Tensor:
    """Returns u + sin(u)^2 with u = scale * x, of (B, C, 1, T) with channels last."""
    if not x.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(f"strides {x.stride()} of shape {tuple(x.shape)}: channels last is needed")
    out = torch.empty_like(x) if scale is not None else x
    n = x.numel()
    grid = (triton.cdiv(n, BLOCK),)
    with torch.cuda.device_of(x):  # Triton launches on the thread's current device
        _snake[grid](x, x if scale is None else scale, out, n, x.shape[1], SCALED=scale is not None, BLOCK=BLOCK)
    return out
