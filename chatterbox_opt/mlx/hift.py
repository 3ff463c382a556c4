"""models.hift.Hift.decode in MLX: (B, T, C) throughout. Results are evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce

import mlx.core as mx
from torch import Tensor, nn

from ..config import HiftConfig
from ..models.hift import FLOAT32, LAST_SLOPE, MAX_MAGNITUDE, down_rates, synthesis, window_squared
from ..models.hift import Hift as TorchHift
from .arrays import CPU, dtype_of, to_mlx
from .conformer import leaky_relu
from .weights import Weights

Layer = Callable[[mx.array], mx.array]
SOURCE = ("f0_predictor.", "m_source.")  # these stay in torch


class Hift:
    def __init__(self, cfg: HiftConfig, named: Iterable[tuple[str, Tensor]], dtype: str = "float32") -> None:
        """`named`: all tensors of a models.hift.Hift, SOURCE's included, which torch uses."""
        w = Weights(lambda: TorchHift(cfg), named, dtype_of(dtype), in_float32=not_in_half)
        levels, kinds = range(len(cfg.up_rates)), len(cfg.res_kernels)
        self.cfg, self.dtype = cfg, w.dtype
        self.conv_pre, self.conv_post = conv(w, "conv_pre"), conv(w, "conv_post")
        self.ups = [up_conv(w, f"ups.{i}", u, (k - u) // 2) for i, u, k in zip(levels, cfg.up_rates, cfg.up_kernels)]
        self.downs = [conv(w, f"source_downs.{i}", stride=r, padding=r // 2) for i, r in zip(levels, down_rates(cfg))]
        self.source_blocks = [ResBlock(w, f"source_resblocks.{i}", cfg.source_dilations[i]) for i in levels]
        self.blocks = [
            [ResBlock(w, f"resblocks.{i * kinds + j}", cfg.res_dilations[j]) for j in range(kinds)] for i in levels
        ]
        self.synthesis, self.window = to_mlx(synthesis(cfg.n_fft, CPU)), to_mlx(window_squared(cfg.n_fft, CPU))

    def decode(self, mel: mx.array, spectrum: mx.array) -> mx.array:
        """(B, T, 80) and (B, 120 T + 1, 18) -> (B, 480 T)."""
        source, x = spectrum.astype(self.dtype), self.conv_pre(mel.astype(self.dtype))
        for i, up in enumerate(self.ups):
            x = up(leaky_relu(x, self.cfg.lrelu_slope))
            if i == len(self.ups) - 1:  # one frame more than up-sampling gives: the first is mirrored
                x = mx.concatenate([x[:, 1:2], x], axis=1)
            x = x + self.source_blocks[i](self.downs[i](source))
            x = added(block(x) for block in self.blocks[i]) / len(self.blocks[i])
        wave = self._wave(self.conv_post(leaky_relu(x, LAST_SLOPE).astype(mx.float32)))
        mx.eval(wave)
        return wave

    def _wave(self, x: mx.array) -> mx.array:
        """(B, T, 18) log-magnitudes and phases -> (B, hop (T - 1)), overlapped and added."""
        n_fft, hop = self.cfg.n_fft, self.cfg.hop
        magnitude, phase = mx.split(x, 2, axis=-1)
        magnitude, phase = mx.minimum(mx.exp(magnitude), MAX_MAGNITUDE), mx.sin(phase)
        frames = mx.concatenate([magnitude * mx.cos(phase), magnitude * mx.sin(phase)], axis=-1) @ self.synthesis
        half, length = n_fft // 2, hop * (x.shape[1] - 1)
        windows = mx.broadcast_to(self.window, (1, *frames.shape[1:]))
        wave, weight = (overlap_add(y, hop)[:, half : half + length] for y in (frames, windows))
        return mx.clip(wave / weight, -self.cfg.audio_limit, self.cfg.audio_limit)


class ResBlock:
    def __init__(self, w: Weights, at: str, dilations: Iterable[int]) -> None:
        self.layers = [
            (w[f"{at}.activations1.{i}.alpha"], conv(w, f"{at}.convs1.{i}", dilation=d), conv(w, f"{at}.convs2.{i}"))
            for i, d in enumerate(dilations)
        ]

    def __call__(self, x: mx.array) -> mx.array:
        for alpha, conv1, conv2 in self.layers:
            x = x + conv2(snake(conv1(snake(x * alpha))))
        return x


def snake(x: mx.array) -> mx.array:
    return x + mx.square(mx.sin(x))


def conv(w: Weights, at: str, stride: int = 1, dilation: int = 1, padding: int | None = None) -> Layer:
    """`padding` None: the output is as long as the input."""
    weight, bias = w[f"{at}.weight"].squeeze(2).swapaxes(1, 2), w[f"{at}.bias"]
    weight = mx.contiguous(weight)  # (C_out, K, C_in)
    mx.eval(weight)
    padding = (weight.shape[1] - 1) * dilation // 2 if padding is None else padding
    return lambda x: mx.conv1d(x, weight, stride, padding, dilation) + bias


def up_conv(w: Weights, at: str, stride: int, padding: int) -> Layer:
    weight, bias = mx.contiguous(w[f"{at}.weight"].squeeze(2).transpose(1, 2, 0)), w[f"{at}.bias"]
    mx.eval(weight)
    return lambda x: mx.conv_transpose1d(x, weight, stride=stride, padding=padding) + bias


def overlap_add(frames: mx.array, hop: int) -> mx.array:
    """(B, T, n) frames, hop samples apart, n whole hops -> (B, hop (T - 1) + n)."""
    parts = mx.unflatten(frames, -1, (-1, hop))
    slots = parts.shape[2]
    return mx.flatten(added(mx.pad(parts[:, :, i], [(0, 0), (i, slots - 1 - i), (0, 0)]) for i in range(slots)), 1)


def added(arrays: Iterable[mx.array]) -> mx.array:
    return reduce(mx.add, arrays)


def not_in_half(hift: nn.Module) -> set[str]:
    """Returns the names of tensors that stay in float32, as in engine.wav.WavRunner."""
    return {name for name in hift.state_dict() if name.split(".")[0] in FLOAT32}
