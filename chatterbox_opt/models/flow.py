"""Speech tokens and a voice -> mel: encode, then solve an ODE from noise."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import MEL_BINS, SPEECH_CODES, XVECTOR_DIM, FlowConfig
from .conformer import Conformer, HalfLinear
from .estimator import Estimator


class Decoder(nn.Module):
    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.estimator = Estimator(config)


class Flow(nn.Module):
    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        self.input_embedding = nn.Embedding(SPEECH_CODES, config.dim)
        self.spk_embed_affine_layer = nn.Linear(XVECTOR_DIM, MEL_BINS)
        self.encoder = Conformer(config)
        self.encoder_proj = HalfLinear(config.dim, MEL_BINS)
        self.decoder = Decoder(config)

    def encode(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, n) tokens, the voice's prompt first -> mu (B, 2n, 80)."""
        x = self.input_embedding(tokens)
        return self.encoder_proj(self.encoder(x, lengths)).float()

    def speaker(self, xvector: Tensor) -> Tensor:
        """(B, 192) -> (B, 80)."""
        return self.spk_embed_affine_layer(F.normalize(xvector.float(), dim=1))

    def solve(
        self,
        noise: Tensor,
        mu: Tensor,
        speaker: Tensor,
        prompt: Tensor,
        span: Tensor,
        times: Tensor,
        mask: Tensor | None = None,
        unguided: int = 0,
        check: Callable[[], None] | None = None,
    ) -> Tensor:
        """Euler steps from noise (B, T, 80) along `span` (S + 1,) with `times` from Estimator.time_table; float32.
        Without meanflow each velocity is led away from one that knows nothing, except in the last `unguided` steps.
        `check` is called ahead of every step, and may raise."""
        estimator = self.decoder.estimator
        known = estimator.constant(mu, speaker, prompt)
        guided = not self.config.meanflow and self.config.cfg_rate > 0
        both, both_mask = known, mask
        if guided:
            blind = estimator.constant(torch.zeros_like(mu), torch.zeros_like(speaker), torch.zeros_like(prompt))
            both = tuple(torch.cat(pair) for pair in zip(known, blind))
            both_mask = None if mask is None else mask.repeat(2, 1, 1, 1)
        x, rate = noise.float(), self.config.cfg_rate
        for i in range(len(times)):
            if check is not None:
                check()
            if guided and i < len(times) - unguided:
                lead, blind = estimator(x, times[i], both, both_mask).chunk(2)
                velocity = (1 + rate) * lead - rate * blind
            else:
                velocity = estimator(x, times[i], known, mask)
            x = x + (span[i + 1] - span[i]) * velocity
        return x


def time_span(steps: int, meanflow: bool, schedule: str = "cosine", device: torch.device | None = None) -> Tensor:
    """(steps + 1,) times from 0 to 1. Meanflow's are even; "cosine" is what the guided model was published with;
    "sway" spends more of its steps early, for runs with fewer of them."""
    t = torch.linspace(0, 1, steps + 1, device=device)
    if meanflow:
        return t
    t = 1 - torch.cos(t * 0.5 * torch.pi)
    return t if schedule == "cosine" else t - 0.4 * (torch.cos(0.5 * math.pi * t) - 1 + t)
