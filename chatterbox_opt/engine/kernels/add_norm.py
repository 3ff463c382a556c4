"""x + update and the LayerNorm of the sum, in one pass over memory. Its plain-torch twin is models/estimator.add_norm.

The sum is kept in float32 and the norm is written in the precision of the product that follows, which saves two casts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...models import estimator
from ...models.conformer import Norm
from . import trial
from .early import early, gdc_launch_dependents, gdc_wait
from .language import tl, triton

FRAMES = 4  # per program
WARPS = 4
TRIED = 2000  # frames in a trial: 10 s of speech after a 10 s prompt, guided


if triton is not None:

    @triton.jit(do_not_specialize=["frames"])
    def _add_norm(
        x, update, weight, bias, total, normed, frames, eps,
        CHANNELS: tl.constexpr, WIDTH: tl.constexpr, FRAMES: tl.constexpr, EARLY: tl.constexpr,
    ):  # fmt: skip
        if EARLY:
            gdc_launch_dependents()
        t = (tl.program_id(0) * FRAMES + tl.arange(0, FRAMES))[:, None]
        c = tl.arange(0, WIDTH)[None, :]
        w = tl.load(weight + c, mask=c < CHANNELS, other=0.0).to(tl.float32)
        b = tl.load(bias + c, mask=c < CHANNELS, other=0.0).to(tl.float32)
        if EARLY:
            gdc_wait()
        at, inside = t * CHANNELS + c, (t < frames) & (c < CHANNELS)
        v = tl.load(x + at, mask=inside, other=0.0) + tl.load(update + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(total + at, v, mask=inside)
        centred = tl.where(inside, v - tl.sum(v, 1)[:, None] / CHANNELS, 0.0)
        size = 1.0 / tl.sqrt(tl.sum(centred * centred, 1)[:, None] / CHANNELS + eps)
        tl.store(normed + at, (centred * size * w + b).to(normed.dtype.element_ty), mask=inside)


def add_norm(x: Tensor, update: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """x (B, T, C) in float32, update (B, T, C) in any precision -> their sum in float32, and its norm in the precision
    of the update."""
    x, update = x.contiguous(), update.contiguous()
    total, normed = torch.empty_like(x), torch.empty_like(update)
    frames, channels = x.numel() // x.shape[-1], x.shape[-1]
    with torch.cuda.device_of(x):
        _add_norm[(triton.cdiv(frames, FRAMES),)](
            x, update, norm.weight, norm.bias, total, normed, frames, norm.eps, CHANNELS=channels,
            WIDTH=triton.next_power_of_2(channels), FRAMES=FRAMES, num_warps=WARPS, **early(x.device),
        )  # fmt: skip
    return total, normed


def trusted(norm: Norm, dtype: torch.dtype) -> bool:
    """Whether it passed a trial for updates of `dtype`."""
    if triton is None or not norm.weight.is_cuda:
        return False
    generator = torch.Generator(norm.weight.device).manual_seed(0)  # leaves the requests' generators alone
    channels = len(norm.weight)
    both = torch.randn(2, TRIED, channels, generator=generator, device=norm.weight.device, dtype=torch.float32)
    x, update = both[0], both[1].to(dtype)

    def twin(_: int) -> tuple[Tensor, Tensor]:
        total, normed = estimator.add_norm(x, update, norm)
        return total, normed.to(dtype)  # as the product that follows does

    shape = f"{channels} channels, {TRIED} frames, {str(dtype).removeprefix('torch.')}"
    return trial.accepts(
        "add_norm", shape, lambda _: add_norm(x, update, norm), twin, device=x.device, tolerance=trial.TOLERANCE[dtype]
    )
