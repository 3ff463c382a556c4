"""Drawing the next token: pure functions on (N, V) float32 logits, one row a request, nothing that waits for the host.

A row's parameters are tensors, so they may differ between rows and change between calls without a new graph.
Which filters run at all is decided on the host, from the requests' options.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NEG = -torch.inf


@dataclass
class RowParams:
    """Each (N, 1) float32, except `top_k` (N, 1) long."""

    cfg: Tensor
    temperature: Tensor  # 0 = greedy
    min_p: Tensor
    top_p: Tensor
    top_k: Tensor
    penalty: Tensor


@dataclass(frozen=True)
class Filters:
    """What at least one row asks for."""

    min_p: bool = True
    top_p: bool = False
    top_k: bool = False


def guide(conditional: Tensor, unconditional: Tensor, weight: Tensor) -> Tensor:
    return conditional + weight * (conditional - unconditional)


def penalize(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Every id of `seen` (N, V) becomes less likely, whatever the sign of its logit."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def cool(logits: Tensor, temperature: Tensor) -> Tensor:
    """Greedy rows stay as they are: `draw` takes their maximum."""
    return logits / torch.where(temperature > 0, temperature, 1.0)


def keep_min_p(logits: Tensor, min_p: Tensor) -> Tensor:
    probs = logits.softmax(-1)
    return logits.masked_fill(probs < min_p * probs.amax(-1, keepdim=True), NEG)


def keep_top(logits: Tensor, top_k: Tensor | None = None, top_p: Tensor | None = None) -> Tensor:
    """The top_k likeliest (0: all), and of these the smallest set whose mass reaches top_p; the likeliest always stays.
    One sorting for both, and in ascending order, as the original sums."""
    ordered, index = logits.sort(-1)
    out = torch.zeros_like(ordered, dtype=torch.bool)
    if top_k is not None:
        last = (logits.shape[1] - top_k.clamp(1, logits.shape[1])).expand(len(logits), 1)
        out = (ordered < ordered.gather(1, last)) & (top_k > 0)
        ordered = ordered.masked_fill(out, NEG)
    if top_p is not None:
        rest = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
        rest[:, -1] = False
        out = out | (rest & (top_p < 1))
    return logits.masked_fill(out.scatter(1, index, out), NEG)


def draw(logits: Tensor, noise: Tensor, temperature: Tensor) -> Tensor:
    """(N,) ids. `noise` (N, V) ~ Exp(1): argmax(p / noise) is a draw from p, the very one torch.multinomial makes."""
    drawn = (logits.softmax(-1) / noise).argmax(-1)
    return torch.where(temperature[:, 0] > 0, drawn, logits.argmax(-1))


def next_token(logits: Tensor, seen: Tensor, noise: Tensor, params: RowParams, filters: Filters) -> Tensor:
    """English and multilingual order: penalty, temperature, min-p, top-p, draw."""
    logits = cool(penalize(logits, seen, params.penalty), params.temperature)
    if filters.min_p:
        logits = keep_min_p(logits, params.min_p)
    if filters.top_k or filters.top_p:
        logits = keep_top(logits, params.top_k if filters.top_k else None, params.top_p if filters.top_p else None)
    return draw(logits, noise, params.temperature)


def next_token_turbo(logits: Tensor, seen: Tensor, noise: Tensor, params: RowParams, filters: Filters) -> Tensor:
    """Turbo's order: temperature, top-k, top-p, and the penalty last, on what the filters left."""
    logits = cool(logits, params.temperature)
    if filters.top_k or filters.top_p:
        logits = keep_top(logits, params.top_k if filters.top_k else None, params.top_p if filters.top_p else None)
    return draw(penalize(logits, seen, params.penalty), noise, params.temperature)
