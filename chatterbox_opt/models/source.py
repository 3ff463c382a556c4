"""Mel -> the vocoder's excitation: the fundamental frequency, its harmonics as sines, and noise.

In float32, with phases summed in float64: an error of phase grows with every second of sound.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..config import MEL_BINS, S3GEN_RATE, SAMPLES_PER_FRAME, HiftConfig

BLOCK = 500  # frames computed at once, each of 9 harmonics by 480 samples


class F0Predictor(nn.Module):
    """Mel (B, 80, T) -> fundamental frequency (B, T) in Hz, near zero where unvoiced.

    The same operations in the same layout as upstream's, equal to the last bit on a CPU: the phases add up any
    difference for the length of an utterance (one unit in the last place of 200 Hz is 0.01 cycles after a minute, at
    the ninth harmonic). It is one percent of the vocoder's work.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        sizes = (MEL_BINS, *[channels] * 5)
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes):
            layers += [nn.Conv1d(n_in, n_out, 3, padding=1), nn.ELU(inplace=True)]
        self.condnet = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, 1)

    def forward(self, mel: Tensor) -> Tensor:
        return self.classifier(self.condnet(mel).transpose(1, 2)).squeeze(-1).abs()


class HarmonicSource(nn.Module):
    """Fundamental frequency (B, T) in Hz -> samples (B, 480 T): the weighted sum of its H harmonics."""

    def __init__(self, cfg: HiftConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.l_linear = nn.Linear(cfg.harmonics + 1, 1)

    def forward(
        self, f0: Tensor, phases: Tensor, noise: Tensor, phase_dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """`phases` (B, H, 1) are where the sines start, in radians (the first is taken as zero); `noise` (B, H, 480 T)
        is normal; phases are summed in `phase_dtype`."""
        order = torch.arange(1, phases.shape[1] + 1, device=f0.device, dtype=f0.dtype)
        step = (f0[:, None, :] * order[:, None] / S3GEN_RATE).to(phase_dtype)  # (B, H, T) cycles per sample
        start = (step.cumsum(-1) - step) * SAMPLES_PER_FRAME  # cycles before each frame
        phases = torch.cat([torch.zeros_like(phases[:, :1]), phases[:, 1:]], 1)
        blocks = [
            self._block(f0[:, a : a + BLOCK], step[..., a : a + BLOCK], start[..., a : a + BLOCK], phases,
                        noise[..., a * SAMPLES_PER_FRAME : (a + BLOCK) * SAMPLES_PER_FRAME])
            for a in range(0, f0.shape[1], BLOCK)
        ]
        return torch.cat(blocks, -1) if len(blocks) > 1 else blocks[0]

    def _block(self, f0: Tensor, step: Tensor, start: Tensor, phases: Tensor, noise: Tensor) -> Tensor:
        # Rounded to float32 as upstream does: that changes phases after a few seconds, by 0.002 cycles at 2^14.
        ramp = torch.arange(1, SAMPLES_PER_FRAME + 1, device=f0.device, dtype=step.dtype)
        cycles = torch.addcmul(start.unsqueeze(-1), step.unsqueeze(-1), ramp).float()  # (B, H, n, 480)
        sine = cycles.frac_().mul_(2 * math.pi).add_(phases.unsqueeze(-1)).sin_()
        voiced = (f0 > self.cfg.voiced_threshold).to(sine.dtype)[:, None, :, None]
        amp = voiced * self.cfg.noise_std + (1 - voiced) * self.cfg.sine_amp / 3
        sine = sine.mul_(voiced * self.cfg.sine_amp).addcmul_(noise.unflatten(-1, (-1, SAMPLES_PER_FRAME)), amp)
        mixed = torch.matmul(self.l_linear.weight, sine.flatten(2)).squeeze(1)
        return mixed.add_(self.l_linear.bias).tanh_()

