"""The flow's attention over all frames of a padded batch. Its plain-torch twin is models/estimator.attend_all.

With a mask, torch does not use its fastest attention kernels. This one reads keys and their part of the mask tile by
tile, and reads queries, keys and values directly from the output of their joint product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...models import estimator
from . import trial
from .language import tl, triton

QUERIES, KEYS = 64, 128  # per tile: on an H200 a third faster than 64 keys at 1,000 frames, as fast at 16 rows
WARPS, STAGES = 4, 3
FRAMES = 1000  # in a trial: 10 s of speech after a 10 s prompt
LOG2_E = 1.4426950408889634


if triton is not None:

    @triton.jit(do_not_specialize=["frames"])
    def _attend_all(
        qkv, mask, out, frames, scale,
        HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    ):  # fmt: skip
        row, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
        t = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
        d = tl.arange(0, WIDTH)
        step = 3 * HEADS * DIM
        base = qkv + row.to(tl.int64) * frames * step + head * DIM
        inside = d[None, :] < DIM
        q = tl.load(base + t[:, None] * step + d[None, :], mask=(t < frames)[:, None] & inside, other=0.0)
        best = tl.full((QUERIES,), -float("inf"), tl.float32)
        mass = tl.zeros((QUERIES,), tl.float32)
        total = tl.zeros((QUERIES, WIDTH), tl.float32)
        for start in range(0, frames, KEYS):
            s = start + tl.arange(0, KEYS)
            there = (s < frames)[:, None] & inside
            at = base + s[:, None] * step + d[None, :]
            k = tl.load(at + HEADS * DIM, mask=there, other=0.0)
            v = tl.load(at + 2 * HEADS * DIM, mask=there, other=0.0)
            hidden = tl.load(mask + row * frames + s, mask=s < frames, other=-float("inf")).to(tl.float32)
            score = tl.dot(q, tl.trans(k)) * scale + hidden[None, :]  # in powers of 2
            top = tl.maximum(best, tl.max(score, 1))  # finite from the first tile on, as frame 0 of every row exists
            weight = tl.exp2(score - top[:, None])
            shrink = tl.exp2(best - top)
            mass = mass * shrink + tl.sum(weight, 1)
            total = total * shrink[:, None] + tl.dot(weight.to(v.dtype), v)
            best = top
        at = out + (row.to(tl.int64) * frames + t[:, None]) * (HEADS * DIM) + head * DIM + d[None, :]
        tl.store(at, (total / mass[:, None]).to(out.dtype.element_ty), mask=(t < frames)[:, None] & inside)


def attend_all(qkv: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    """qkv (B, T, 3 H Dh) in half precision, mask (B, 1, 1, T) with 0 at frames that exist, of which frame 0 must be
    one, and -inf at others -> (B, T, H Dh). Without a mask torch's own kernel is called, which is as fast."""
    if mask is None:
        return estimator.attend_all(qkv, mask, heads)
    rows, frames, width = qkv.shape
    dim = width // (3 * heads)
    qkv = qkv.contiguous()
    out = qkv.new_empty(rows, frames, heads * dim)
    with torch.cuda.device_of(qkv):
        _attend_all[(triton.cdiv(frames, QUERIES), rows * heads)](
            qkv, mask.contiguous(), out, frames, LOG2_E * dim**-0.5, HEADS=heads, DIM=dim,
            WIDTH=max(16, triton.next_power_of_2(dim)), QUERIES=QUERIES, KEYS=KEYS, num_warps=WARPS, num_stages=STAGES,
        )  # fmt: skip
    return out


def trusted(heads: int, weight: Tensor) -> bool:
    """Whether it passed a trial for the shape of `weight` (3 H Dh, C), which makes queries, keys and values."""
    if not (triton is not None and weight.is_cuda and weight.element_size() == 2):
        return False
    full = dict(device=weight.device)
    generator = torch.Generator(weight.device).manual_seed(0)  # leaves the requests' generators alone
    qkv = torch.randn(2, FRAMES, len(weight), generator=generator, **full).to(weight.dtype)
    mask = torch.zeros(2, 1, 1, FRAMES, dtype=weight.dtype, **full)
    mask[1, ..., -FRAMES // 10 :] = -torch.inf
    both = [lambda i, f=f: (f(qkv, mask, heads),) for f in (attend_all, estimator.attend_all)]
    shape = f"{heads} heads, {FRAMES} frames, {str(weight.dtype).removeprefix('torch.')}"
    tolerance = trial.TOLERANCE[weight.dtype]
    return trial.accepts("flow_attention", shape, *both, device=weight.device, tolerance=tolerance)
