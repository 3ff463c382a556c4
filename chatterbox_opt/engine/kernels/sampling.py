"""Sampling in one launch: guidance, penalty, temperature, min-p and the draw, one slot per program. Its plain-torch
twins are engine/sampling.guide and engine/sampling.next_token, which keep the filters that sort (top-p, top-k) and
Turbo's order.

A program holds a whole row of logits in registers, so that it is read once.
Compared with the twins in Triton's interpreter and compiled for sm_80 and sm_90; run and timed on an H200.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..sampling import RowParams

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU builds of torch come without it
    triton = None

WARPS = 16
# no specialization on alignment: an odd vocabulary and any first slot use the same kernel
POINTERS = ["logits", "cond", "uncond", "seen", "noise", "cfg", "temperature", "min_p", "penalty", "out"]


if triton is not None:

    @triton.jit(do_not_specialize=POINTERS)
    def _draw(
        logits, cond, uncond, seen, noise, cfg, temperature, min_p, penalty, out,
        VOCAB: tl.constexpr, WIDTH: tl.constexpr, MIN_P: tl.constexpr,
    ):  # fmt: skip
        slot = tl.program_id(0)
        i = tl.arange(0, WIDTH)
        inside = i < VOCAB
        x = tl.load(logits + tl.load(cond + slot) * VOCAB + i, mask=inside, other=0.0)
        other = tl.load(logits + tl.load(uncond + slot) * VOCAB + i, mask=inside, other=0.0)
        x = x + tl.load(cfg + slot) * (x - other)
        again = tl.load(penalty + slot)
        marked = tl.load(seen + slot.to(tl.int64) * VOCAB + i, mask=inside, other=0) != 0
        x = tl.where(marked, tl.where(x < 0, x * again, tl.div_rn(x, again)), x)
        heat = tl.load(temperature + slot)
        x = tl.div_rn(x, tl.where(heat > 0, heat, 1.0))
        x = tl.where(inside, x, -float("inf"))
        top = tl.max(x, 0)
        if MIN_P:
            p = tl.exp(x - top)
            p = tl.div_rn(p, tl.sum(p, 0))
            x = tl.where(p < tl.load(min_p + slot) * tl.max(p, 0), -float("inf"), x)
        if heat > 0:
            p = tl.exp(x - top)
            p = tl.div_rn(p, tl.sum(p, 0))
            p = tl.div_rn(p, tl.load(noise + slot.to(tl.int64) * VOCAB + i, mask=inside, other=1.0))
            tl.store(out + slot, tl.argmax(tl.where(inside, p, -1.0), 0))
        else:
            tl.store(out + slot, tl.argmax(x, 0))


def sample(
    logits: Tensor, cond: Tensor, uncond: Tensor, seen: Tensor, noise: Tensor, params: RowParams, min_p: bool
) -> Tensor:
    """logits (R, V) float32, cond and uncond (N,) their rows, seen and noise (N, V) -> (N,) ids."""
    vocab = logits.shape[1]
    out = torch.empty_like(cond)
    if not all(t.is_contiguous() for t in (logits, seen, noise)):
        raise ValueError("logits, seen and noise must be dense")
    with torch.cuda.device_of(logits):
        _draw[(len(cond),)](
            logits, cond, uncond, seen.view(torch.uint8), noise, params.cfg, params.temperature, params.min_p,
            params.penalty, out, VOCAB=vocab, WIDTH=triton.next_power_of_2(vocab), MIN_P=min_p, num_warps=WARPS,
        )  # fmt: skip
    return out
