"""Decode attention, one new position per row: rope, cache write and attention in one or two launches. Its plain-torch
twin is the models' Attention over engine/cache.Decode.

A row reads only its own positions, however long the live part is. The grid depends on `live` alone, so nothing waits
for the host. If rows and heads are too few to fill the device, the positions are split over several programs, and a
second launch combines their results.
Compared with the twin in Triton's interpreter and compiled for every target; run and timed on an H100.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .early import early, gdc_launch_dependents, gdc_wait
from .language import tl, triton

BLOCK = 64  # positions a program reads at once
PROGRAMS = 264  # enough to fill a device: two per multiprocessor of the largest


if triton is not None:

    @triton.jit
    def _turned(at, partner, table, d, inside, TURN: tl.constexpr):
        """Returns a head's channels from `at`, each pair rotated by its angle, rounded as the twin rounds."""
        x = tl.load(at + d, mask=inside, other=0.0).to(tl.float32)
        if TURN:
            other = tl.load(at + partner, mask=inside, other=0.0).to(tl.float32)
            cos = tl.load(table + d // 2 * 2, mask=inside, other=0.0)
            sin = tl.load(table + d // 2 * 2 + 1, mask=inside, other=0.0)
            x = x * cos + tl.where(d % 2 == 0, -other, other) * sin
        return x.to(at.dtype.element_ty)

    @triton.jit
    def _page(cache, base, s, last, d, DIM: tl.constexpr):
        """Returns the positions `s` below `last` of a head's keys or values."""
        there = (s < last)[:, None] & (d < DIM)[None, :]
        return tl.load(cache + base + s[:, None] * DIM + d[None, :], mask=there, other=0.0)

    @triton.jit
    def _add(best, mass, total, q, k, v, exists, scale):
        """Returns the running maximum, sum and values of a softmax with positions added."""
        k, v = k.to(tl.float32), v.to(tl.float32)
        score = tl.where(exists, tl.sum(k * q[None, :], 1) * scale, -float("inf"))
        top = tl.maximum(best, tl.max(score, 0))
        base = tl.where(top == -float("inf"), 0.0, top)
        weight, shrink = tl.exp(score - base), tl.exp(best - base)
        return top, mass * shrink + tl.sum(weight, 0), total * shrink + tl.sum(weight[:, None] * v, 0)

    @triton.jit(do_not_specialize=["chunk", "splits", "rope_step"])
    def _attend(
        qkv, rope, keys, values, positions, out, parts, chunk, splits, rope_step, row_step, head_step, scale,
        HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, TURN: tl.constexpr, SPLIT: tl.constexpr,
        BLOCK: tl.constexpr, EARLY: tl.constexpr,
    ):  # fmt: skip
        if EARLY:
            gdc_launch_dependents()
        head, part = tl.program_id(0), tl.program_id(1)
        row, h = head // HEADS, head % HEADS
        d = tl.arange(0, WIDTH)
        inside = d < DIM
        partner = d + 1 - d % 2 * 2
        # Earlier positions, and this number, were written in earlier steps: no kernel of this step writes them.
        position = tl.load(positions + row).to(tl.int32)
        first = part * chunk
        last = tl.minimum(first + chunk, position)  # the new position itself is in registers
        base = row.to(tl.int64) * row_step + h * head_step
        s = first + tl.arange(0, BLOCK)
        old_k, old_v = _page(keys, base, s, last, d, DIM), _page(values, base, s, last, d, DIM)
        if EARLY:
            gdc_wait()
        new = qkv + row * 3 * HEADS * DIM + h * DIM
        table = rope + row * rope_step
        q = _turned(new, partner, table, d, inside, TURN).to(tl.float32)
        best = -float("inf")
        mass = 0.0
        total = tl.zeros((WIDTH,), tl.float32)
        if (first <= position) & (position < first + chunk):
            k = _turned(new + HEADS * DIM, partner, table, d, inside, TURN)
            v = tl.load(new + 2 * HEADS * DIM + d, mask=inside, other=0.0)
            target = base + position * DIM + d
            tl.store(keys + target, k, mask=inside)
            tl.store(values + target, v, mask=inside)
            best = tl.sum(q * k.to(tl.float32), 0) * scale
            mass = 1.0
            total = v.to(tl.float32)
        best, mass, total = _add(best, mass, total, q, old_k, old_v, s < last, scale)
        start = first + BLOCK
        while start < last:  # the interpreter's `range` accepts no loaded number
            s = start + tl.arange(0, BLOCK)
            k, v = _page(keys, base, s, last, d, DIM), _page(values, base, s, last, d, DIM)
            best, mass, total = _add(best, mass, total, q, k, v, s < last, scale)
            start += BLOCK
        if SPLIT:
            at = parts + (head * splits + part).to(tl.int64) * (WIDTH + 2)
            tl.store(at + d, total)
            tl.store(at + WIDTH, best)
            tl.store(at + WIDTH + 1, mass)
        else:
            tl.store(out + head * DIM + d, (total / mass).to(out.dtype.element_ty), mask=inside)

    @triton.jit(do_not_specialize=["splits"])
    def _join(
        parts, out, splits, DIM: tl.constexpr, WIDTH: tl.constexpr, MOST: tl.constexpr, EARLY: tl.constexpr
    ):  # fmt: skip
        if EARLY:
            gdc_launch_dependents()
            gdc_wait()
        head = tl.program_id(0)
        s, d = tl.arange(0, MOST), tl.arange(0, WIDTH)
        at = parts + (head * splits + s).to(tl.int64) * (WIDTH + 2)
        best = tl.load(at + WIDTH, mask=s < splits, other=-float("inf"))
        weight = tl.exp(best - tl.max(best, 0))  # 0 for parts past the row's position
        mass = tl.sum(weight * tl.load(at + WIDTH + 1, mask=s < splits, other=0.0), 0)
        total = tl.load(at[:, None] + d[None, :], mask=(s < splits)[:, None], other=0.0)
        total = tl.sum(total * weight[:, None], 0) / mass
        tl.store(out + head * DIM + d, total.to(out.dtype.element_ty), mask=d < DIM)


def split_positions(heads: int, live: int) -> tuple[int, int]:
    """Returns the number of programs that share a head's `live` positions, and the positions per program."""
    splits = max(1, min(-(-PROGRAMS // heads), -(-live // BLOCK)))
    chunk = -(-live // (splits * BLOCK)) * BLOCK
    return -(-live // chunk), chunk


def decode(qkv: Tensor, rope: Tensor | None, keys: Tensor, values: Tensor, positions: Tensor, live: int) -> Tensor:
    """qkv (R, 1, 3 H Dh), rope (R|1, 1, Dh/2, 2) or None, keys and values (R, H, S, Dh) with Dh and S as they lie in
    the cache, positions (R,) below `live` -> (R, 1, H Dh)."""
    rows, heads, _, dim = keys.shape
    if keys.stride() != values.stride() or keys.stride()[2:] != (dim, 1):
        raise ValueError(f"strides {keys.stride()} and {values.stride()}: positions of {dim} channels must be dense")
    qkv, width = qkv.contiguous(), triton.next_power_of_2(dim)
    out = qkv.new_empty(rows, 1, heads * dim)
    splits, chunk = split_positions(rows * heads, live)
    size = rows * heads * splits * (width + 2)
    parts = torch.empty(size, device=qkv.device, dtype=torch.float32) if splits > 1 else out
    step = 0 if rope is None or len(rope) == 1 else dim
    with torch.cuda.device_of(qkv):
        _attend[(rows * heads, splits)](
            qkv, qkv if rope is None else rope.contiguous(), keys, values, positions, out, parts, chunk, splits, step,
            keys.stride(0), keys.stride(1), dim**-0.5,
            HEADS=heads, DIM=dim, WIDTH=width, TURN=rope is not None, SPLIT=splits > 1, BLOCK=BLOCK, num_warps=4,
            **early(qkv.device),
        )  # fmt: skip
        if splits > 1:
            shape = dict(DIM=dim, WIDTH=width, MOST=triton.next_power_of_2(splits))
            _join[(rows * heads,)](parts, out, splits, **shape, num_warps=4, **early(qkv.device))
    return out
