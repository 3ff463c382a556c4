"""Perth's implicit watermark: one network adds a few decibels in places below 2 kHz, another one detects them.

Only the difference made by the watermark goes through the inverse transform; the sound stays in the time domain.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.layers import overlap_add

HEADROOM = 15.0  # dB above full scale that the normalised spectrum covers
QUIET = 0.05  # of the loudest frame's level: frames below it are not marked
BLOCK = 2000  # frames analysed at a time, 20 s
SLOPE = 0.01  # of the leaky ReLUs


class Facts(NamedTuple):
    """The hyperparameters of the checkpoint that its use depends on."""

    sample_rate: int = 32_000
    n_fft: int = 2048
    hop_size: int = 320
    stft_magnitude_min: float = 1e-9
    max_wmark_freq: float = 2000
    hidden_size: int = 256

    @property
    def bins(self) -> int:
        """Number of frequency bins that carry the watermark."""
        return round((self.n_fft // 2 + 1) * self.max_wmark_freq / (self.sample_rate / 2))

    @property
    def floor(self) -> float:
        return 20 * math.log10(self.stft_magnitude_min)


class Layer(nn.Module):
    def __init__(self, n_in: int, n_out: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, (1, kernel), padding=(0, kernel // 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Stack(nn.Sequential):
    """Convolutions on (B, C, 1, T) with channels last, which is fastest on CPU and tensor cores."""

    def __init__(self, n_in: int, hidden: int, n_out: int) -> None:
        super().__init__(Layer(n_in, hidden, 1), *[Layer(hidden, hidden, 7) for _ in range(5)], Layer(hidden, n_out, 1))

    def forward(self, x: Tensor, inside: Tensor | None = None) -> Tensor:
        """`inside` (B, 1, 1, T) is 1 within a row's own length: padding is zeroed, as if the row ended there."""
        x = x.contiguous(memory_format=torch.channels_last)
        for i, layer in enumerate(self):
            x = layer(x)
            if i < len(self) - 1:
                x = F.leaky_relu_(x, SLOPE)
                x = x if inside is None else x.mul_(inside)
        return x


class Encoder(nn.Module):
    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.layers = Stack(facts.bins, facts.hidden_size, facts.bins)


class Decoder(nn.Module):
    """Detects the watermark at three playback speeds."""

    slow_layers: Stack
    normal_layers: Stack
    fast_layers: Stack

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        for name in ("slow", "normal", "fast"):
            setattr(self, f"{name}_layers", Stack(facts.bins, facts.hidden_size, 2))

    def forward(self, spectrum: Tensor, loud: Tensor) -> Tensor:
        """(B, bins, T) normalised decibels, (B, T) weights of the frames -> (B,) confidence."""
        frames, votes = spectrum.shape[-1], []
        for layers, pace in ((self.slow_layers, 1.25), (self.normal_layers, 1.0), (self.fast_layers, 0.75)):
            size = int(frames * pace)
            x = F.interpolate(spectrum, size=size, mode="linear", align_corners=True) if size != frames else spectrum
            counts = F.interpolate(loud[:, None], size=size, mode="nearest")
            x = layers(x.unsqueeze(2)).squeeze(2)
            votes.append((x * counts).sum(-1) / counts.sum(-1))  # (B, 2): weight, verdict
        weight, verdict = torch.stack(votes, -1).unbind(1)
        return (weight.softmax(-1) * verdict).sum(-1)


class Analysis(NamedTuple):
    decibels: Tensor  # (bins, T) normalised
    unit: Tensor  # (bins, T) complex, of magnitude one
    loud: Tensor  # (T,) 1 for frames above QUIET


def analyse(wav: Tensor, facts: Facts) -> Analysis:
    """(N,) at Perth's rate -> spectrum of the marked band, computed block by block."""
    n_fft, hop = facts.n_fft, facts.hop_size
    padded = _mirrored(wav, n_fft // 2)
    frames = len(wav) // hop + 1
    window = torch.hann_window(n_fft, device=wav.device, dtype=wav.dtype)
    decibels, units, levels = [], [], []
    for start in range(0, frames, BLOCK):
        count = min(BLOCK, frames - start)
        part = padded[start * hop : (start + count - 1) * hop + n_fft]
        spectrum = torch.stft(part, n_fft, hop, window=window, center=False, return_complex=True)
        magnitude = spectrum.abs()
        low, size = spectrum[: facts.bins], magnitude[: facts.bins]
        units.append(torch.where(size > 0, low / size.clamp(min=1e-30), torch.ones_like(low)))
        scaled = magnitude.clamp_(min=facts.stft_magnitude_min).log10_()
        scaled = scaled.mul_(20).sub_(facts.floor).div_(HEADROOM - facts.floor)
        decibels.append(scaled[: facts.bins].clone())
        levels.append(scaled.sum(0))
    level = torch.cat(levels)
    return Analysis(torch.cat(decibels, 1), torch.cat(units, 1), (level > QUIET * level.max()).float())


def synthesise(added: Tensor, length: int, facts: Facts) -> Tensor:
    """(bins, T) complex -> (length,): the exact inverse of the transform in `analyse`."""
    n_fft, hop = facts.n_fft, facts.hop_size
    window = torch.hann_window(n_fft, device=added.device, dtype=torch.float32)
    frames = added.shape[1]
    wave = torch.zeros((frames + n_fft // hop + 1) * hop, device=added.device, dtype=torch.float32)
    weight = torch.zeros_like(wave)
    for start in range(0, frames, BLOCK):
        parts = torch.fft.irfft(added[:, start : start + BLOCK].t(), n=n_fft) * window
        for onto, block in ((wave, parts), (weight, (window * window).expand(len(parts), -1))):
            (sums,) = overlap_add(block[None], hop)
            onto[start * hop : start * hop + len(sums)] += sums
    kept = slice(n_fft // 2, n_fft // 2 + length)
    return wave[kept] / weight[kept].clamp_(min=1e-11)


def added_by(encoder: Encoder, found: list[Analysis], facts: Facts) -> list[Tensor]:
    """Returns what the watermark adds to each spectrum, (bins, T) complex in Perth's scale. One batch, whose rows do
    not affect each other."""
    lengths = [a.decibels.shape[1] for a in found]
    x = torch.nn.utils.rnn.pad_sequence([a.decibels.t() for a in found], batch_first=True).transpose(1, 2)
    inside = None
    if min(lengths) < max(lengths):
        ends = torch.tensor(lengths, device=x.device)
        inside = (torch.arange(max(lengths), device=x.device) < ends[:, None]).to(x.dtype)[:, None, None]
    change = encoder.layers(x.unsqueeze(2), inside).squeeze(2)
    span = (HEADROOM - facts.floor) / 20
    out = []
    for a, row, n in zip(found, change, lengths):
        before = a.decibels * span + facts.floor / 20
        after = before + row[:, :n] * a.loud * span
        out.append((10.0**after - 10.0**before) * a.unit)
    return out


def _mirrored(wav: Tensor, n: int) -> Tensor:
    """Returns `wav` reflected by `n` samples on both sides; a shorter one is first padded with silence."""
    if len(wav) <= n:
        wav = F.pad(wav, (0, n + 1 - len(wav)))
    return F.pad(wav[None, None], (n, n), mode="reflect")[0, 0]
