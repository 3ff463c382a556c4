"""Random logits of several slots, and what the plain functions draw from them."""

from __future__ import annotations

import torch

from chatterbox_opt.engine import sampling as plain

CPU = torch.device("cpu")
FILTERS = [plain.Filters(min_p, top, top) for min_p in (True, False) for top in (False, True)]


def some_draw(vocab: int, device=CPU):
    slots = 5
    logits = 4 * torch.randn(2 * slots, vocab, device=device)
    column = dict(dtype=torch.float32, device=device)
    params = plain.RowParams(
        cfg=torch.tensor([[0.5], [0.0], [1.0], [0.3], [0.5]], **column),
        temperature=torch.tensor([[0.8], [0.0], [0.3], [1.5], [0.0]], **column),
        min_p=torch.tensor([[0.05], [0.05], [0.0], [0.3], [1.0]], **column),
        top_p=torch.tensor([[0.95], [1.0], [0.5], [0.9], [0.0]], **column),
        top_k=torch.tensor([[0], [50], [1], [100], [7]], device=device),
        penalty=torch.tensor([[1.2], [1.0], [2.0], [0.8], [1.2]], **column),
    )
    cond = torch.tensor([1, 2, 4, 7, 8], device=device)
    uncond = torch.tensor([0, 2, 5, 6, 9], device=device)
    seen = torch.rand(slots, vocab, device=device) < 0.3
    noise = torch.empty(slots, vocab, device=device).exponential_()
    return logits, cond, uncond, seen, noise, params


def drawn_plainly(logits, cond, uncond, seen, noise, params, filters, turbo=False):
    if turbo:
        return plain.next_token_turbo(logits[cond], seen, noise, params, filters)
    return plain.next_token(plain.guide(logits[cond], logits[uncond], params.cfg), seen, noise, params, filters)
