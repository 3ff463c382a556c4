"""Sampling in one launch: guidance, penalty, temperature, filters and the draw, one slot per program. Its plain-torch
twins are engine/sampling.next_token, with guide before it, and engine/sampling.next_token_turbo.

A program holds a whole row of logits in registers, so that it is read once. Nothing is sorted: top-k and top-p each
search the logit from which on tokens are kept, bit by bit of its number in ascending order.
Compared with the twins in Triton's interpreter and compiled for every target; run and timed on an H100.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..sampling import Filters, RowParams
from .early import early, gdc_launch_dependents, gdc_wait
from .language import tl, triton

WARPS = 16
# no specialization on alignment: an odd vocabulary and any first slot use the same kernel
POINTERS = [
    "logits", "cond", "uncond", "seen", "noise", "cfg", "temperature", "min_p", "top_p", "top_k", "penalty", "out",
]  # fmt: skip


if triton is not None:

    @triton.jit
    def _numbers(x):
        """Returns integers in the order of the floats."""
        bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)  # -0.0 equals 0.0
        return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)

    @triton.jit
    def _kth(numbers, k):
        """Returns the k-th largest number."""
        found = tl.full((), -(1 << 31), tl.int64)
        for i in range(32):
            at = found + (tl.full((), 1, tl.int64) << (31 - i))
            found = tl.where(tl.sum((numbers >= at.to(tl.int32)).to(tl.int32), 0) >= k, at, found)
        return found.to(tl.int32)

    @triton.jit
    def _edge(numbers, p, share):
        """Returns the largest integer below which the numbers' `p` sum up to at most `share`."""
        found = tl.full((), -(1 << 31), tl.int64)
        for i in range(32):
            at = found + (tl.full((), 1, tl.int64) << (31 - i))
            found = tl.where(tl.sum(tl.where(numbers < at.to(tl.int32), p, 0.0), 0) <= share, at, found)
        return found.to(tl.int32)

    @triton.jit
    def _probabilities(x):
        p = tl.exp(x - tl.max(x, 0))
        return tl.div_rn(p, tl.sum(p, 0))

    @triton.jit
    def _keep_top(x, k, top_p, VOCAB: tl.constexpr):
        """As engine/sampling.keep_top: of equal logits at the edge of top-p, the first are dropped first."""
        none = -(1 << 31)  # below every logit
        least = tl.where(k > 0, _kth(_numbers(x), tl.minimum(tl.maximum(k, 1), VOCAB)), none)
        x = tl.where(_numbers(x) < least, -float("inf"), x)
        numbers, p, share = _numbers(x), _probabilities(x), 1.0 - top_p
        highest = tl.max(numbers, 0)
        edge = tl.where(top_p < 1.0, tl.minimum(_edge(numbers, p, share), highest), none)
        equal = numbers == edge
        rank = tl.cumsum(equal.to(tl.int32), 0)
        droppable = tl.where(edge < highest, VOCAB, tl.sum(equal.to(tl.int32), 0) - 1)  # the likeliest stays
        below, each = tl.sum(tl.where(numbers < edge, p, 0.0), 0), tl.max(tl.where(equal, p, 0.0), 0)
        dropped = equal & (rank <= droppable) & (below + rank.to(tl.float32) * each <= share)
        return tl.where((numbers < edge) | dropped, -float("inf"), x)

    @triton.jit
    def _penalized(x, marked, penalty):
        return tl.where(marked, tl.where(x < 0, x * penalty, tl.div_rn(x, penalty)), x)

    @triton.jit(do_not_specialize=POINTERS)
    def _draw(
        logits, cond, uncond, seen, noise, cfg, temperature, min_p, top_p, top_k, penalty, out,
        VOCAB: tl.constexpr, WIDTH: tl.constexpr, TURBO: tl.constexpr, MIN_P: tl.constexpr, TOP: tl.constexpr,
        EARLY: tl.constexpr,
    ):  # fmt: skip
        if EARLY:
            gdc_launch_dependents()
            gdc_wait()
        slot = tl.program_id(0)
        i = tl.arange(0, WIDTH)
        inside = i < VOCAB
        x = tl.load(logits + tl.load(cond + slot) * VOCAB + i, mask=inside, other=0.0)
        marked = tl.load(seen + slot.to(tl.int64) * VOCAB + i, mask=inside, other=0) != 0
        again, heat = tl.load(penalty + slot), tl.load(temperature + slot)
        if not TURBO:
            other = tl.load(logits + tl.load(uncond + slot) * VOCAB + i, mask=inside, other=0.0)
            x = x + tl.load(cfg + slot) * (x - other)
            x = _penalized(x, marked, again)
        x = tl.div_rn(x, tl.where(heat > 0, heat, 1.0))
        x = tl.where(inside, x, -float("inf"))
        if MIN_P:
            p = _probabilities(x)
            x = tl.where(p < tl.load(min_p + slot) * tl.max(p, 0), -float("inf"), x)
        if TOP:
            x = _keep_top(x, tl.load(top_k + slot), tl.load(top_p + slot), VOCAB)
        if TURBO:
            x = _penalized(x, marked, again)
        if heat > 0:
            p = tl.div_rn(_probabilities(x), tl.load(noise + slot.to(tl.int64) * VOCAB + i, mask=inside, other=1.0))
            x = tl.where(inside, p, -1.0)
        # No number is greater than a NaN or less: of a row with one, a number past the vocabulary may win.
        tl.store(out + slot, tl.minimum(tl.argmax(x, 0), VOCAB - 1))


def sample(
    logits: Tensor, cond: Tensor, uncond: Tensor, seen: Tensor, noise: Tensor, params: RowParams, filters: Filters,
    turbo: bool = False,
) -> Tensor:  # fmt: skip
    """logits (R, V) float32, cond and uncond (N,) their rows, seen and noise (N, V) -> (N,) ids. In Turbo's order
    nothing is guided, and the penalty comes last."""
    vocab = logits.shape[1]
    out = torch.empty_like(cond)
    if not all(t.is_contiguous() for t in (logits, seen, noise)):
        raise ValueError("logits, seen and noise must be dense")
    with torch.cuda.device_of(logits):
        _draw[(len(cond),)](
            logits, cond, uncond, seen.view(torch.uint8), noise, params.cfg, params.temperature, params.min_p,
            params.top_p, params.top_k, params.penalty, out, VOCAB=vocab, WIDTH=triton.next_power_of_2(vocab),
            TURBO=turbo, MIN_P=filters.min_p, TOP=filters.top_p or filters.top_k, num_warps=WARPS,
            **early(logits.device),
        )  # fmt: skip
    return out
