"""Sampling the next token: pure functions on (N, V) float32 logits, one row per slot, without synchronization.

Parameters are tensors, so they may differ between slots and change between calls without a new graph.
Which filters run at all is decided on the host, from the slots' options.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

NEG = -torch.inf


@dataclass
class RowParams:
    """Sampling parameters per slot: each (N, 1) float32, except `top_k` (N, 1) long."""

    cfg: Tensor
    temperature: Tensor  # 0 = greedy
    min_p: Tensor
    top_p: Tensor
    top_k: Tensor
    penalty: Tensor


@dataclass(frozen=True)
class Filters:
    """The filters that at least one slot needs."""

    min_p: bool = True
    top_p: bool = False
    top_k: bool = False
    most: int | None = None  # ids that top-k leaves in any slot, where the host may look at logits: sorts only these


def guide(conditional: Tensor, unconditional: Tensor, weight: Tensor) -> Tensor:
    return conditional + weight * (conditional - unconditional)


def penalize(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Makes every id of `seen` (N, V) less likely, whatever the sign of its logit."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def cool(logits: Tensor, temperature: Tensor) -> Tensor:
    """Divides by the temperature. Greedy rows stay unchanged, as `draw` takes their maximum."""
    return logits / torch.where(temperature > 0, temperature, 1.0)


def keep_min_p(logits: Tensor, min_p: Tensor) -> Tensor:
    probs = logits.softmax(-1)
    return logits.masked_fill(probs < min_p * probs.amax(-1, keepdim=True), NEG)


def keep_top(
    logits: Tensor, top_k: Tensor | None = None, top_p: Tensor | None = None, most: int | None = None
) -> Tensor:
    """Keeps the top_k likeliest (0: all), and of these the smallest set whose mass reaches top_p, at least one.
    Sorts once for both, in ascending order, because upstream sums in that order."""
    size = logits.shape[1]
    ordered, index = likeliest(logits, most) if most is not None and most < size else logits.sort(-1)
    count = ordered.shape[1]
    out = torch.zeros_like(ordered, dtype=torch.bool)
    if top_k is not None:
        last = (count - top_k.clamp(1, count)).expand(len(logits), 1)
        out = (ordered < ordered.gather(1, last)) & (top_k > 0)
        ordered = ordered.masked_fill(out, NEG)
    if top_p is not None:
        if count < size:  # sums over fewer would be rounded otherwise
            ordered = F.pad(ordered, (size - count, 0), value=NEG)
        rest = ordered.softmax(-1).cumsum(-1)[:, size - count :] <= 1 - top_p
        rest[:, -1] = False
        out = out | (rest & (top_p < 1))
    return logits.masked_fill(torch.ones_like(logits, dtype=torch.bool).scatter_(1, index, out), NEG)


def likeliest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns the last `count` columns of logits.sort(), or all where equal logits leave their order open. 1,000 of
    6,563 take a CPU a fraction of the time."""
    ordered, index = (found.flip(1) for found in logits.topk(count))
    apart = (ordered[:, 1:] > ordered[:, :-1]).all() and (logits >= ordered[:, :1]).sum() == ordered.numel()
    return (ordered, index) if apart else logits.sort(-1)


def keep_asked(logits: Tensor, params: RowParams, filters: Filters) -> Tensor:
    top_k, top_p = params.top_k if filters.top_k else None, params.top_p if filters.top_p else None
    return keep_top(logits, top_k, top_p, filters.most)


def draw(logits: Tensor, noise: Tensor, temperature: Tensor) -> Tensor:
    """Returns (N,) ids. `noise` (N, V) ~ Exp(1): argmax(p / noise) draws from p, as torch.multinomial does."""
    drawn = (logits.softmax(-1) / noise).argmax(-1)
    return torch.where(temperature[:, 0] > 0, drawn, logits.argmax(-1))


def next_token(logits: Tensor, seen: Tensor, noise: Tensor, params: RowParams, filters: Filters) -> Tensor:
    """Returns (N,) ids, in the English and multilingual order: penalty, temperature, min-p, top-p, draw."""
    logits = cool(penalize(logits, seen, params.penalty), params.temperature)
    if filters.min_p:
        logits = keep_min_p(logits, params.min_p)
    if filters.top_k or filters.top_p:
        logits = keep_asked(logits, params, filters)
    return draw(logits, noise, params.temperature)


def next_token_turbo(logits: Tensor, seen: Tensor, noise: Tensor, params: RowParams, filters: Filters) -> Tensor:
    """Returns (N,) ids, in Turbo's order: temperature, top-k, top-p, and the penalty last, on the remaining ids."""
    logits = cool(logits, params.temperature)
    if filters.top_k or filters.top_p:
        logits = keep_asked(logits, params, filters)
    return draw(penalize(logits, seen, params.penalty), noise, params.temperature)
