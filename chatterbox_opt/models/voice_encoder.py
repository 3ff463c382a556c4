"""Reference wav -> speaker embedding: an LSTM over 1.6 s windows of the whole recording, averaged."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import SPEAKER_DIM, VoiceEncoderConfig
from .mel import SHORTEST, voice_mel

WINDOW = 160  # frames of 10 ms
RATE = 1.3  # windows per second
STEP = 77  # frames between windows: 16000 / 1.3 / 160
COVERAGE = 0.8  # of the last window that must be sound for it to count
WINDOWS_AT_ONCE = 64  # bounds the LSTM's gates at 42 MB
TRIM_DB = 20.0  # frames this much quieter than the loudest are silence, at both ends
TRIM_FRAME, TRIM_HOP = 2048, 512  # samples


class VoiceEncoder(nn.Module):
    def __init__(self, cfg: VoiceEncoderConfig) -> None:
        super().__init__()
        self.lstm = nn.LSTM(cfg.n_mels, cfg.hidden, cfg.layers, batch_first=True)
        self.proj = nn.Linear(cfg.hidden, SPEAKER_DIM)

    def forward(self, windows: Tensor) -> Tensor:
        """(N, 160, 40) -> (N, 256), each of length 1."""
        _, (hidden, _) = self.lstm(windows)
        raw = F.relu(self.proj(hidden[-1]))
        return raw / raw.norm(dim=1, keepdim=True)


def speaker_embedding(encoder: Callable[[Tensor], Tensor], wav: Tensor, trimmed: bool = True) -> Tensor:
    """Samples (N,) at 16 kHz -> embedding (1, 256) of length 1. `encoder` is a VoiceEncoder, or an equal function;
    `trimmed`: without the silence at both ends."""
    windows = cut(voice_mel(trim(wav) if trimmed else wav))
    mean = torch.cat([encoder(part) for part in windows.split(WINDOWS_AT_ONCE)]).mean(0, keepdim=True)
    return mean / mean.norm(dim=1, keepdim=True)


def cut(mel: Tensor) -> Tensor:
    """Mel (T, 40) -> overlapping windows (N, 160, 40). The last is padded with zeros, or left out below COVERAGE."""
    count, rest = divmod(max(len(mel) - WINDOW + STEP, 0), STEP)
    if count == 0 or (rest + WINDOW - STEP) / WINDOW >= COVERAGE:
        count += 1
    length = WINDOW + STEP * (count - 1)
    mel = F.pad(mel, (0, 0, 0, length - len(mel)))  # a negative pad cuts
    return mel.unfold(0, WINDOW, STEP).transpose(1, 2)


def trim(wav: Tensor) -> Tensor:
    """Returns samples (N,) without the silence at both ends, cut at multiples of 512 samples."""
    # Mean squares of 2048 samples around every 512th, each from four sums of 512.
    per_frame = TRIM_FRAME // TRIM_HOP
    blocks = len(wav) // TRIM_HOP + per_frame
    padded = F.pad(wav, (TRIM_FRAME // 2, blocks * TRIM_HOP - TRIM_FRAME // 2 - len(wav)))
    power = padded.square().view(-1, TRIM_HOP).sum(1).unfold(0, per_frame, 1).sum(1) / TRIM_FRAME
    power = power.clamp(min=1e-10)
    loud = (power > power.max() * 10.0 ** (-TRIM_DB / 10)).nonzero()[:, 0]
    first, last = loud[[0, -1]].tolist()
    kept = wav[first * TRIM_HOP : (last + 1) * TRIM_HOP]
    return kept if len(kept) >= SHORTEST else wav
