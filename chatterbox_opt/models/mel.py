"""The four spectrograms that the networks were trained on. Filter banks are computed once per device."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

S3_MELS = 128
VOICE_MELS = 40
FBANK_BINS = 80
SHORTEST = 401  # samples: shorter audio has no frame of 400 samples, or too little to reflect at its ends


def slaney_filters(rate: int, n_fft: int, n_mels: int, fmax: float) -> np.ndarray:
    """Returns (n_mels, n_fft // 2 + 1): triangles on Slaney's mel scale, each of unit area, from 0 Hz to fmax."""
    # The scale is linear up to 1 kHz, with 200/3 Hz per mel, and logarithmic above, with 27 mels per factor of 6.4.
    knee, per_mel, log_step = 1000.0, 200.0 / 3, math.log(6.4) / 27.0
    knee_mel = knee / per_mel
    top = knee_mel + math.log(fmax / knee) / log_step if fmax >= knee else fmax / per_mel
    mels = np.linspace(0.0, top, n_mels + 2)
    edges = np.where(mels < knee_mel, mels * per_mel, knee * np.exp(log_step * (mels - knee_mel)))
    bins = np.linspace(0.0, rate / 2, n_fft // 2 + 1)
    low, mid, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.minimum((bins - low) / (mid - low), (high - bins) / (high - mid)).clip(min=0.0)
    return (triangles * 2.0 / (high - low)).astype(np.float32)


def kaldi_filters(rate: int, n_fft: int, n_mels: int, fmin: float) -> Tensor:
    """Returns (n_mels, n_fft // 2 + 1): triangles on HTK's mel scale, of unit height, from fmin to rate / 2. In float32
    throughout, to round as Kaldi does, with which the x-vector network was trained."""
    low, high = (1127.0 * math.log(1.0 + f / 700.0) for f in (fmin, rate / 2))
    step = (high - low) / (n_mels + 1)
    index = torch.arange(n_mels, dtype=torch.float32)[:, None]
    left, centre, right = low + index * step, low + (index + 1.0) * step, low + (index + 2.0) * step
    mel = 1127.0 * (1.0 + rate / n_fft * torch.arange(n_fft // 2, dtype=torch.float32) / 700.0).log()
    triangles = torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clamp(min=0.0)
    return F.pad(triangles, (0, 1))  # Kaldi omits the bin at rate / 2


@functools.lru_cache(maxsize=64)
def _constant(kind: str, device: torch.device) -> Tensor:
    # A cached tensor outlives the call, so it must not be an inference tensor, nor on `meta`.
    with torch.inference_mode(False), torch.device("cpu"):
        if kind == "prompt filters":
            made = torch.from_numpy(slaney_filters(24_000, 1920, 80, 8000.0))
        elif kind == "s3 filters":
            made = torch.from_numpy(slaney_filters(16_000, 400, S3_MELS, 8000.0))
        elif kind == "voice filters":
            made = torch.from_numpy(slaney_filters(16_000, 400, VOICE_MELS, 8000.0))
        elif kind == "kaldi filters":
            made = kaldi_filters(16_000, 512, FBANK_BINS, 20.0)
        elif kind == "povey":
            made = torch.hann_window(400, periodic=False, dtype=torch.float32).pow(0.85)
        else:
            made = torch.hann_window(int(kind.removeprefix("hann ")), dtype=torch.float32)
        return made.to(device)


def prompt_mel(wav: Tensor) -> Tensor:
    """S3Gen's prompt: (N,) at 24 kHz -> (80, N // 480) natural-log magnitudes. N > 720."""
    # The reflection is 720 samples, not half a window: frame i covers samples 480 i - 720 to 480 i + 1200.
    padded = F.pad(wav[None], (720, 720), mode="reflect")[0]
    spec = torch.stft(padded, 1920, 480, window=_constant("hann 1920", wav.device), center=False, return_complex=True)
    magnitude = (torch.view_as_real(spec).square().sum(-1) + 1e-9).sqrt()
    return (_constant("prompt filters", wav.device) @ magnitude).clamp(min=1e-5).log()


def s3_mel(wav: Tensor) -> Tensor:
    """The speech tokenizer's input: (N,) at 16 kHz -> (128, N // 160), Whisper's scaling. N > 200."""
    power = _power(wav)[:, :-1]
    log = (_constant("s3 filters", wav.device) @ power).clamp(min=1e-10).log10()
    return (torch.maximum(log, log.max() - 8.0) + 4.0) / 4.0


def voice_mel(wav: Tensor) -> Tensor:
    """The voice encoder's input: (N,) at 16 kHz -> (1 + N // 160, 40) powers, no logarithm. N > 200."""
    return (_constant("voice filters", wav.device) @ _power(wav)).t()


def _power(wav: Tensor) -> Tensor:
    window = _constant("hann 400", wav.device)
    spec = torch.stft(wav, 400, 160, window=window, pad_mode="reflect", return_complex=True)
    return spec.abs().square()


def kaldi_fbank(wav: Tensor) -> Tensor:
    """The x-vector's input: (N,) at 16 kHz -> (1 + (N - 400) // 160, 80) log powers, each bin's mean removed. N >= 400.

    Kaldi's recipe without dither: each 25 ms frame loses its mean, is pre-emphasised and windowed, then padded to 512.
    """
    frames = wav.unfold(0, 400, 160)
    frames = frames - frames.mean(1, keepdim=True)
    frames = frames - 0.97 * torch.cat([frames[:, :1], frames[:, :-1]], 1)
    power = torch.fft.rfft(frames * _constant("povey", wav.device), n=512).abs().square()
    log = (power @ _constant("kaldi filters", wav.device).t()).clamp(min=torch.finfo(torch.float32).eps).log()
    return log - log.mean(0, keepdim=True)
