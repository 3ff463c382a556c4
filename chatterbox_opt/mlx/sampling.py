"""engine.sampling in MLX: the same filters in the same order. The same noise draws the same token."""

from __future__ import annotations

import mlx.core as mx

from ..engine.sampling import Filters, RowParams

NEG = -float("inf")


def guide(conditional: mx.array, unconditional: mx.array, weight: mx.array) -> mx.array:
    return conditional + weight * (conditional - unconditional)


def penalize(logits: mx.array, seen: mx.array, penalty: mx.array) -> mx.array:
    return mx.where(seen, mx.where(logits < 0, logits * penalty, logits / penalty), logits)


def cool(logits: mx.array, temperature: mx.array) -> mx.array:
    return logits / mx.where(temperature > 0, temperature, 1.0)


def keep_min_p(logits: mx.array, min_p: mx.array) -> mx.array:
    probs = mx.softmax(logits, axis=-1)
    return mx.where(probs < min_p * probs.max(-1, keepdims=True), NEG, logits)


def keep_top(logits: mx.array, top_k: mx.array | None, top_p: mx.array | None) -> mx.array:
    vocab = logits.shape[1]
    index = mx.argsort(logits, axis=-1)
    ordered = mx.take_along_axis(logits, index, axis=-1)
    out = mx.zeros(logits.shape, dtype=mx.bool_)
    if top_k is not None:
        last = mx.broadcast_to(vocab - mx.clip(top_k, 1, vocab), (logits.shape[0], 1))
        out = (ordered < mx.take_along_axis(ordered, last, axis=-1)) & (top_k > 0)
        ordered = mx.where(out, NEG, ordered)
    if top_p is not None:
        rest = mx.cumsum(mx.softmax(ordered, axis=-1), axis=-1) <= 1 - top_p
        out = out | (rest & (top_p < 1) & (mx.arange(vocab) < vocab - 1))
    return mx.where(mx.put_along_axis(mx.zeros_like(out), index, out, axis=-1), NEG, logits)


def draw(logits: mx.array, noise: mx.array, temperature: mx.array) -> mx.array:
    drawn = (mx.softmax(logits, axis=-1) / noise).argmax(-1)
    return mx.where(temperature[:, 0] > 0, drawn, logits.argmax(-1)).astype(mx.int32)


def next_token(
    logits: mx.array, seen: mx.array, noise: mx.array, params: RowParams, filters: Filters, turbo: bool
) -> mx.array:
    """(N, V) logits, guidance applied -> (N,) tokens. Turbo applies the repetition penalty last."""
    if not turbo:
        logits = penalize(logits, seen, params.penalty)
    logits = cool(logits, params.temperature)
    if filters.min_p:
        logits = keep_min_p(logits, params.min_p)
    if filters.top_k or filters.top_p:
        logits = keep_top(logits, params.top_k if filters.top_k else None, params.top_p if filters.top_p else None)
    if turbo:
        logits = penalize(logits, seen, params.penalty)
    return draw(logits, noise, params.temperature)
