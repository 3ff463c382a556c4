"""Speech tokens and a voice -> mel: encode, then solve an ODE from noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import MEL_BINS, SPEECH_CODES, XVECTOR_DIM, FlowConfig
from .conformer import AttendBiased, Conformer, HalfLinear, attend_biased
from .estimator import Estimator, EstimatorOperations


@dataclass(frozen=True)
class FlowOperations(EstimatorOperations):
    """The operations that the flow is handed in each call. The defaults are the reference; the engine hands in
    functions that return the same faster (engine/operations.py)."""

    attend_biased: AttendBiased = attend_biased  # the encoder's


FLOW_REFERENCE = FlowOperations()


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

    def encode(
        self, tokens: Tensor, lengths: Tensor | None = None, ops: FlowOperations = FLOW_REFERENCE
    ) -> Tensor:
        """Tokens (B, n), the voice's prompt first, of which row i has lengths[i] -> mu (B, 2n, 80)."""
        x = self.input_embedding(tokens)
        return self.encoder_proj(self.encoder(x, lengths, ops.attend_biased)).float()

    def speaker(self, xvector: Tensor) -> Tensor:
        """(B, 192) -> (B, 80)."""
        return self.spk_embed_affine_layer(F.normalize(xvector.float(), dim=1))

    @property
    def guided(self) -> bool:
        """Whether steps use classifier-free guidance. Meanflow models were distilled from guided ones and need none."""
        return not self.config.meanflow and self.config.cfg_rate > 0

    def conditions(self, mu: Tensor, speaker: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """mu and prompt (B, T, 80), speaker (B, 80) -> Estimator.constant of them, (B, T, C) twice; with guidance
        (2B, T, C), the unconditioned rows last."""
        known = self.decoder.estimator.constant(mu, speaker, prompt)
        if not self.guided:
            return known
        zeros = [torch.zeros_like(t) for t in (mu, speaker, prompt)]
        through, short = (torch.cat(pair) for pair in zip(known, self.decoder.estimator.constant(*zeros)))
        return through, short

    def euler(
        self, x: Tensor, time: Tensor, dt: Tensor, conditions: tuple[Tensor, Tensor], mask: Tensor | None = None,
        unguided: bool = False, ops: FlowOperations = FLOW_REFERENCE,
    ) -> Tensor:  # fmt: skip
        """Returns the state x (B, T, 80), float32, one Euler step of `dt` later. `time` is a row of
        Estimator.time_table; `mask` has as many rows as the conditions; `unguided` omits guidance in this step."""
        estimator, rate = self.decoder.estimator, self.config.cfg_rate
        if self.guided and not unguided:
            conditioned, unconditioned = estimator(x, time, conditions, mask, ops).chunk(2)
            return x + dt * ((1 + rate) * conditioned - rate * unconditioned)
        known = conditions[0][: len(x)], conditions[1][: len(x)]
        mask = None if mask is None else mask[: len(x)]
        return x + dt * estimator(x, time, known, mask, ops)


def time_span(steps: int, meanflow: bool, schedule: str = "cosine", device: torch.device | None = None) -> Tensor:
    """Returns (steps + 1,) times from 0 to 1: even for meanflow; "cosine", with which the guided model was published;
    or "sway", which has more of its steps early, for few steps."""
    t = torch.linspace(0, 1, steps + 1, device=device, dtype=torch.float32)
    if meanflow:
        return t
    t = 1 - torch.cos(t * 0.5 * torch.pi)
    return t if schedule == "cosine" else t - 0.4 * (torch.cos(0.5 * math.pi * t) - 1 + t)
