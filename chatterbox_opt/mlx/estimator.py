"""models.estimator in MLX: the same names, shapes and order of operations."""

from __future__ import annotations

import math

import mlx.core as mx
from torch import nn

from ..config import MEL_BINS, FlowConfig
from ..models.estimator import CONSTANT
from .conformer import Norm, WindowConv
from .t3 import flat, heads_of
from .weights import Weights

NORM_EPS = nn.LayerNorm(1).eps


class Estimator:
    def __init__(self, config: FlowConfig, w: Weights) -> None:
        at = "decoder.estimator"
        self.time_dim = MEL_BINS + CONSTANT
        self.time_1, self.time_2 = w.linear(f"{at}.time_mlp.linear_1"), w.linear(f"{at}.time_mlp.linear_2")
        self.mixer = w.linear(f"{at}.time_embed_mixer") if config.meanflow else None
        self.down, self.up = Stage(config, w, f"{at}.down"), Stage(config, w, f"{at}.up")
        self.mid = [Stage(config, w, f"{at}.mid.{i}") for i in range(config.mid_blocks)]
        self.first = FirstResnet(self.down.resnet)
        self.down_conv, self.up_conv = causal_conv(w, f"{at}.down.conv"), causal_conv(w, f"{at}.up.conv")
        self.final_block, self.final_proj = ConvBlock(w, f"{at}.final_block"), w.linear(f"{at}.final_proj")

    def time_table(self, span: mx.array) -> mx.array:
        """(S + 1,) times -> (S, stages, C): each resnet's time embedding at each step."""
        half = self.time_dim // 2
        rate = mx.exp(mx.arange(half, dtype=mx.float32) * -(math.log(10_000) / (half - 1)))
        angle = 1000 * span[:, None] * rate
        inner = self.time_1(mx.concatenate([mx.sin(angle), mx.cos(angle)], axis=-1))
        t = self.time_2(inner * mx.sigmoid(inner))
        t = t[:-1] if self.mixer is None else self.mixer(mx.concatenate([t[:-1], t[1:]], axis=1))
        t = mish(t)
        return mx.stack([stage.resnet.mlp(t) for stage in (self.down, *self.mid, self.up)], axis=1)

    def constant(self, mu: mx.array, speaker: mx.array, prompt: mx.array) -> tuple[mx.array, mx.array]:
        """mu and prompt (B, T, 80), speaker (B, 80): returns what they contribute to every step."""
        speaker = mx.broadcast_to(speaker[:, None], mu.shape)
        return self.first.constant(mx.concatenate([mu, speaker, prompt], axis=-1))

    def __call__(
        self, x: mx.array, time: mx.array, constant: tuple[mx.array, mx.array], mask: mx.array | None
    ) -> mx.array:
        """x (B, T, 80), time (stages, C), constant of B rows or, with guidance, 2B: returns that many velocities, in
        float32. `mask` (rows, 1, 1, T) is False for padding."""
        skip = x = self.down(self.first(x, time[0], constant), mask)
        x = self.down_conv(x).astype(mx.float32)
        for i, stage in enumerate(self.mid):
            x = stage(stage.resnet(x, time[1 + i]), mask)
        x = self.up(self.up.resnet(mx.concatenate([x, skip], axis=-1), time[-1]), mask)
        return self.final_proj(self.final_block(self.up_conv(x))).astype(mx.float32)


class Stage:
    """A resnet and the transformer blocks after it."""

    def __init__(self, config: FlowConfig, w: Weights, at: str) -> None:
        self.resnet = Resnet(w, f"{at}.resnet")
        self.blocks = [Transformer(config, w, f"{at}.blocks.{i}") for i in range(config.block_layers)]

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        for block in self.blocks:
            x = block(x, mask)
        return x


class Resnet:
    def __init__(self, w: Weights, at: str) -> None:
        self.mlp, self.res_conv = w.linear(f"{at}.mlp"), w.linear(f"{at}.res_conv")
        self.block1, self.block2 = ConvBlock(w, f"{at}.block1"), ConvBlock(w, f"{at}.block2")

    def __call__(self, x: mx.array, time: mx.array) -> mx.array:
        return self.block2(self.block1(x) + time) + self.res_conv(x)


class FirstResnet:
    """A resnet whose constant channels are added up once per utterance, not at every step."""

    def __init__(self, resnet: Resnet) -> None:
        self.block1, self.block2, self.res_conv = resnet.block1, resnet.block2, resnet.res_conv
        shares = slice(None, MEL_BINS), slice(MEL_BINS, None)
        self.through, self.constant_through = map(self.block1.conv.of_channels, shares)
        self.short, self.constant_short = (self.res_conv.weight[:, share].T for share in shares)
        mx.eval(self.through, self.constant_through, self.short, self.constant_short)

    def constant(self, channels: mx.array) -> tuple[mx.array, mx.array]:
        """(B, T, 240) -> their share of the convolution and of the shortcut, biases included."""
        conv, channels = self.block1.conv, channels.astype(self.through.dtype)
        through = conv.linear.add_bias(conv.windows(channels) @ self.constant_through)
        short = self.res_conv.add_bias(channels @ self.constant_short)
        return through.astype(mx.float32), short.astype(mx.float32)

    def __call__(self, x: mx.array, time: mx.array, constant: tuple[mx.array, mx.array]) -> mx.array:
        """`constant` may have a multiple of x's rows: guidance sees the same x twice."""
        copies, x = (constant[0].shape[0] // x.shape[0], 1, 1), x.astype(self.through.dtype)
        through = mx.tile(self.block1.conv.windows(x) @ self.through, copies) + constant[0]
        short = mx.tile(x @ self.short, copies) + constant[1]
        return self.block2(self.block1.finish(through) + time) + short


class ConvBlock:
    """Convolution, norm, Mish."""

    def __init__(self, w: Weights, at: str) -> None:
        self.conv, self.norm = causal_conv(w, f"{at}.conv"), Norm(w, f"{at}.norm", NORM_EPS)

    def __call__(self, x: mx.array) -> mx.array:
        return self.finish(self.conv(x))

    def finish(self, x: mx.array) -> mx.array:
        return mish(self.norm(x))


class Transformer:
    def __init__(self, config: FlowConfig, w: Weights, at: str) -> None:
        self.heads, self.scale = config.est_heads, config.est_head_dim**-0.5
        self.norm1, self.norm3 = Norm(w, f"{at}.norm1", NORM_EPS), Norm(w, f"{at}.norm3", NORM_EPS)
        self.qkv, self.to_out = w.linear(f"{at}.attn1.qkv"), w.linear(f"{at}.attn1.to_out")
        self.ff_in, self.ff_out = w.linear(f"{at}.ff_in"), w.linear(f"{at}.ff_out")

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        q, k, v = mx.split(heads_of(self.qkv(self.norm1(x)), 3 * self.heads), 3, axis=1)
        x = x + self.to_out(flat(mx.fast.scaled_dot_product_attention(q, k, v, scale=self.scale, mask=mask)))
        return x + self.ff_out(gelu(self.ff_in(self.norm3(x))))


def causal_conv(w: Weights, at: str) -> WindowConv:
    return WindowConv(w, at, 3, 2)


def mish(x: mx.array) -> mx.array:
    return x * mx.tanh(mx.logaddexp(x, mx.array(0, x.dtype)))


def gelu(x: mx.array) -> mx.array:
    """Torch's default GELU, by the error function."""
    return x * (1 + mx.erf(x * 2**-0.5)) / 2
