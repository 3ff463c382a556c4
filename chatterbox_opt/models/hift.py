"""Mel and source -> wav: an up-sampling residual stack that writes a short-time spectrum, and its inverse.

Everything between the two transforms is (B, C, 1, T) with channels last: convolutions are a third faster on a CPU,
tensor cores need it, and short-time frames come out of their matrix product in this layout.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import MEL_BINS, HiftConfig
from .layers import overlap_add
from .source import F0Predictor, HarmonicSource

FLOAT32 = ("f0_predictor", "m_source", "conv_post")  # the parts that stay float32 in half precision
LAST_SLOPE = 0.01  # of the leaky ReLU before the last convolution; the others have cfg.lrelu_slope
MAX_MAGNITUDE = 1e2


Convolve = Callable[[Tensor, nn.Module], Tensor]


class Conv(nn.Conv2d):
    """A convolution over time whose output is as long as its input."""

    def __init__(self, n_in: int, n_out: int, kernel: int, dilation: int = 1) -> None:
        super().__init__(n_in, n_out, (1, kernel), padding=(0, (kernel - 1) * dilation // 2), dilation=(1, dilation))


def convolve(x: Tensor, conv: nn.Module) -> Tensor:
    return conv(x)


def convolve_within(convolve: Convolve, frames: int, size: int, x: Tensor, conv: nn.Module) -> Tensor:
    """Returns convolve(x, conv) as if x, which spans `size` mel frames, ended after `frames`: the rest is zeroed."""
    x[..., x.shape[-1] - (size - frames) * (x.shape[-1] // size) :] = 0
    return convolve(x, conv)


def snake(x: Tensor, scale: Tensor | None = None) -> Tensor:
    """Returns u + sin(u)^2 with u = scale * x. x is (B, C, 1, T) and is overwritten if there is no scale (C,).

    Snake is x + sin(a x)^2 / a. Its 1/a is folded into the convolution after it, and a into the one before it, where
    there is one.
    """
    u = x if scale is None else x * scale[:, None, None]
    wave = torch.sin(u)
    return u.addcmul_(wave, wave)


@dataclass(frozen=True)
class VocoderOperations:
    """The operations that the vocoder is handed in each call. The defaults are the reference; the engine hands in
    functions that return the same faster (engine/operations.py)."""

    convolve: Convolve = convolve
    snake: Callable[..., Tensor] = snake  # (x, scale=None)
    phase_dtype: torch.dtype = torch.float64  # in which the source's phases are summed


VOCODER_REFERENCE = VocoderOperations()


class Alpha(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))


class ResBlock(nn.Module):
    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(Conv(channels, channels, kernel, d) for d in dilations)
        self.convs2 = nn.ModuleList(Conv(channels, channels, kernel) for _ in dilations)
        self.activations1 = nn.ModuleList(Alpha(channels) for _ in dilations)

    def forward(self, x: Tensor, ops: VocoderOperations) -> Tensor:
        for act, conv1, conv2 in zip(self.activations1, self.convs1, self.convs2):
            y = ops.convolve(ops.snake(x, act.alpha), conv1)
            x = ops.convolve(ops.snake(y), conv2).add_(x)
        return x


class Hift(nn.Module):
    def __init__(self, cfg: HiftConfig) -> None:
        super().__init__()
        self.cfg = cfg
        widths = [cfg.channels >> (i + 1) for i in range(len(cfg.up_rates))]
        bins = cfg.n_fft + 2  # real and imaginary parts, or log-magnitudes and phases
        self.f0_predictor = F0Predictor(cfg.f0_channels)
        self.m_source = HarmonicSource(cfg)
        self.conv_pre = Conv(MEL_BINS, cfg.channels, 7)
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(2 * c, c, (1, k), (1, u), (0, (k - u) // 2))
            for c, u, k in zip(widths, cfg.up_rates, cfg.up_kernels)
        )
        self.source_downs = nn.ModuleList(
            nn.Conv2d(bins, c, (1, 2 * r if r > 1 else 1), (1, r), (0, r // 2)) for c, r in zip(widths, down_rates(cfg))
        )
        self.source_resblocks = nn.ModuleList(
            ResBlock(c, k, d) for c, k, d in zip(widths, cfg.source_kernels, cfg.source_dilations)
        )
        self.resblocks = nn.ModuleList(
            ResBlock(c, k, d) for c in widths for k, d in zip(cfg.res_kernels, cfg.res_dilations)
        )
        self.conv_post = Conv(widths[-1], bins, 7)

    def forward(
        self, mel: Tensor, phases: Tensor, noise: Tensor, ops: VocoderOperations = VOCODER_REFERENCE
    ) -> Tensor:
        """Mel (B, 80, T) and the noise of HarmonicSource -> wave (B, 480 T)."""
        return self.decode(mel, self.spectrum(self.source(mel, phases, noise, ops)), ops)

    def source(
        self, mel: Tensor, phases: Tensor, noise: Tensor, ops: VocoderOperations = VOCODER_REFERENCE
    ) -> Tensor:
        """Mel (B, 80, T) -> excitation (B, 480 T)."""
        return self.m_source(self.f0_predictor(mel.float()), phases, noise, ops.phase_dtype)

    def spectrum(self, source: Tensor) -> Tensor:
        """(B, N) -> (B, N / hop + 1, n_fft + 2): Hann-windowed short-time spectrum, real parts first."""
        n_fft = self.cfg.n_fft
        padded = F.pad(source.unsqueeze(1), (n_fft // 2, n_fft // 2), mode="reflect").squeeze(1)
        return padded.unfold(-1, n_fft, self.cfg.hop) @ analysis(n_fft, source.device)

    def decode(
        self, mel: Tensor, spectrum: Tensor, ops: VocoderOperations = VOCODER_REFERENCE, frames: int | None = None
    ) -> Tensor:
        """Mel (B, 80, T) and the spectrum of its source (B, 120 T + 1, 18) -> wave (B, 480 T). `frames`: the T that
        count, of mels which are padded; the wave is as long as these, and as if nothing followed them."""
        dtype, padding = self.conv_pre.weight.dtype, 0 if frames is None else mel.shape[-1] - frames
        if padding:
            within = partial(convolve_within, ops.convolve, frames, mel.shape[-1])
            ops = dataclasses.replace(ops, convolve=within)
        source = spectrum.to(dtype).transpose(1, 2).unsqueeze(2)
        x = ops.convolve(mel.to(dtype).unsqueeze(2).contiguous(memory_format=torch.channels_last), self.conv_pre)
        for i, up in enumerate(self.ups):
            x = ops.convolve(F.leaky_relu_(x, self.cfg.lrelu_slope), up)
            y = self.source_resblocks[i](ops.convolve(source, self.source_downs[i]), ops)
            if i == len(self.ups) - 1:  # one frame more than the up-sampled mel, whose first is mirrored
                y[..., 1:] += x
                y[..., :1] += x[..., 1:2]
            else:
                y += x
            x = self._branches(y, i, ops)
        x = ops.convolve(F.leaky_relu_(x, LAST_SLOPE).float(), self.conv_post)
        x = x[..., : x.shape[-1] - padding * math.prod(self.cfg.up_rates)]
        return self._wave(x.squeeze(2).transpose(1, 2))

    def _branches(self, x: Tensor, level: int, ops: VocoderOperations) -> Tensor:
        """Mean of the residual blocks of an up-sampling level."""
        n = len(self.cfg.res_kernels)
        blocks = self.resblocks[level * n : (level + 1) * n]
        total = blocks[0](x, ops)
        for block in blocks[1:]:
            total += block(x, ops)
        return total.div_(n)

    def _wave(self, x: Tensor) -> Tensor:
        """Log-magnitudes and phases (B, T, 18) -> wave (B, hop (T - 1)), by overlap and add."""
        n_fft, hop = self.cfg.n_fft, self.cfg.hop
        magnitude, phase = x.split(n_fft // 2 + 1, -1)
        magnitude = magnitude.exp().clamp_(max=MAX_MAGNITUDE)
        phase = phase.sin()
        frames = torch.cat([magnitude * phase.cos(), magnitude * phase.sin()], -1) @ synthesis(n_fft, x.device)
        half = n_fft // 2
        length = hop * (x.shape[1] - 1)
        wave = overlap_add(frames, hop)[:, half : half + length]
        weight = overlap_add(window_squared(n_fft, x.device).expand(1, x.shape[1], -1), hop)[:, half : half + length]
        limit = self.cfg.audio_limit
        return (wave / weight).clamp_(-limit, limit)


def down_rates(cfg: HiftConfig) -> list[int]:
    """Returns the factor by which each level decimates the source's spectrum: 15, 3, 1."""
    return [math.prod(cfg.up_rates[i + 1 :]) for i in range(len(cfg.up_rates))]


def window(n_fft: int) -> Tensor:
    """Periodic Hann."""
    return torch.hann_window(n_fft, dtype=torch.float64, device="cpu")


@cache
def window_squared(n_fft: int, device: torch.device) -> Tensor:
    """Kept on the device: a captured graph cannot copy from the host."""
    with torch.inference_mode(False):
        return (window(n_fft) ** 2).float().to(device)


@cache
def analysis(n_fft: int, device: torch.device) -> Tensor:
    """Returns (n_fft, n_fft + 2): a frame times this is its windowed spectrum."""
    angle = _angles(n_fft)
    with torch.inference_mode(False):
        return (window(n_fft)[:, None] * torch.cat([angle.cos(), -angle.sin()], 1)).float().to(device)


@cache
def synthesis(n_fft: int, device: torch.device) -> Tensor:
    """Returns (n_fft + 2, n_fft): the inverse, windowed again."""
    angle = _angles(n_fft).t()
    twice = torch.full((n_fft // 2 + 1, 1), 2.0, dtype=torch.float64, device="cpu")
    twice[0] = twice[-1] = 1.0  # all but these two have a mirror image
    with torch.inference_mode(False):
        return (torch.cat([angle.cos() * twice, -angle.sin() * twice]) / n_fft * window(n_fft)).float().to(device)


def _angles(n_fft: int) -> Tensor:
    grid = torch.arange(n_fft, dtype=torch.float64, device="cpu")
    return 2 * math.pi / n_fft * grid[:, None] * grid[: n_fft // 2 + 1]


def reach(cfg: HiftConfig) -> int:
    """Returns the mel frames on either side that a sample depends on, through the mel or the source's spectrum."""
    at = cfg.n_fft / 2 / cfg.hop + 3  # of the inverse transform and conv_post, in positions of the current level
    rate = math.prod(cfg.up_rates)  # short-time frames per mel frame
    branches = max(_block_reach(k, d) for k, d in zip(cfg.res_kernels, cfg.res_dilations))
    farthest = 0.0
    for i in reversed(range(len(cfg.up_rates))):
        up, kernel = cfg.up_rates[i], cfg.up_kernels[i]
        down = down_rates(cfg)[i]
        at += branches + 1  # 1: the mirrored frame
        source = at + _block_reach(cfg.source_kernels[i], cfg.source_dilations[i])
        farthest = max(farthest, (source * down + 2 * down) / rate)
        at = (at + (kernel + up) / 2) / up
    return math.ceil(max(farthest, at + 3))  # conv_pre


def _block_reach(kernel: int, dilations: tuple[int, ...]) -> int:
    return sum((kernel - 1) // 2 * (d + 1) for d in dilations)
