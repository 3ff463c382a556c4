"""models.conformer in MLX: the same names, shapes and order of operations."""

from __future__ import annotations

import math
from functools import partial

import mlx.core as mx

from ..config import FlowConfig
from ..models.conformer import BLOCK, position_waves
from .arrays import CPU, to_mlx
from .t3 import flat, heads_of
from .weights import Weights

EMBED_EPS, LAYER_EPS = 1e-5, 1e-12


class Conformer:
    def __init__(self, config: FlowConfig, w: Weights) -> None:
        at = "encoder"
        self.embed, self.up_embed = Embed(config, w, f"{at}.embed"), Embed(config, w, f"{at}.up_embed")
        ahead = config.pre_lookahead
        self.look1 = WindowConv(w, f"{at}.pre_lookahead_layer.conv1", ahead + 1, 0, ahead)
        self.look2 = WindowConv(w, f"{at}.pre_lookahead_layer.conv2", 3, 2)
        self.encoders = [Layer(config, w, f"{at}.encoders.{i}") for i in range(config.layers)]
        self.up = WindowConv(w, f"{at}.up_layer.conv", 5, 4)
        self.up_encoders = [Layer(config, w, f"{at}.up_encoders.{i}") for i in range(config.up_layers)]
        self.after_norm = Norm(w, f"{at}.after_norm", EMBED_EPS)

    def __call__(self, x: mx.array, lengths: mx.array | None) -> mx.array:
        """(B, T, C) embedded tokens -> (B, 2T, C) float32."""
        x = self.embed(x)
        if lengths is not None:  # without padding, the look-ahead sees zeros behind a row's end
            x = mx.where(padding_mask(lengths, x.shape[1])[..., None], x, 0)
        x = x + self.look2(leaky_relu(self.look1(x), 0.01))
        x = self._run(self.encoders, x.astype(mx.float32), lengths)
        x = self.up_embed(self.up(mx.repeat(x, 2, axis=1)))
        x = self._run(self.up_encoders, x, None if lengths is None else 2 * lengths)
        return self.after_norm(x)

    @staticmethod
    def _run(layers: list[Layer], x: mx.array, lengths: mx.array | None) -> mx.array:
        waves = to_mlx(position_waves(x.shape[2], x.shape[1], CPU))
        mask = None if lengths is None else padding_mask(lengths, x.shape[1])[:, None, None]
        for layer in layers:
            x = layer(x, waves, mask)
        return x


class Layer:
    def __init__(self, config: FlowConfig, w: Weights, at: str) -> None:
        self.norm_mha, self.norm_ff = Norm(w, f"{at}.norm_mha", LAYER_EPS), Norm(w, f"{at}.norm_ff", LAYER_EPS)
        self.attend = RelativeAttention(config, w, f"{at}.self_attn")
        self.w_1, self.w_2 = w.linear(f"{at}.feed_forward.w_1"), w.linear(f"{at}.feed_forward.w_2")

    def __call__(self, x: mx.array, waves: mx.array, mask: mx.array | None) -> mx.array:
        x = x + self.attend(self.norm_mha(x), waves, mask)
        inner = self.w_1(self.norm_ff(x))
        return x + self.w_2(inner * mx.sigmoid(inner))


class RelativeAttention:
    def __init__(self, config: FlowConfig, w: Weights, at: str) -> None:
        self.heads = config.heads
        self.qkv, self.out, self.pos = (w.linear(f"{at}.{name}") for name in ("qkv", "linear_out", "linear_pos"))
        self.u, self.v = (w[f"{at}.pos_bias_{name}"][:, None] for name in "uv")
        mx.eval(self.u, self.v)

    def __call__(self, x: mx.array, waves: mx.array, mask: mx.array | None) -> mx.array:
        n, scale = x.shape[1], (x.shape[2] // self.heads) ** -0.5
        q, k, v = mx.split(heads_of(self.qkv(x), 3 * self.heads), 3, axis=1)
        p = mx.unflatten(self.pos(waves), -1, (self.heads, -1)).transpose(1, 2, 0)  # (H, d, 2T - 1)
        content, place = q + self.u.astype(q.dtype), (q + self.v.astype(q.dtype)) * scale
        out = []
        for a in range(0, n, BLOCK):
            b = min(a + BLOCK, n)
            scores = distance_scores(place[:, :, a:b], p[:, :, n - b : 2 * n - 1 - a], n)
            if mask is not None:
                scores = mx.where(mask, scores, -math.inf)
            out.append(mx.fast.scaled_dot_product_attention(content[:, :, a:b], k, v, scale=scale, mask=scores))
        return self.out(flat(mx.concatenate(out, axis=2)))


class Embed:
    def __init__(self, config: FlowConfig, w: Weights, at: str) -> None:
        self.linear, self.norm, self.scale = w.linear(f"{at}.out.0"), Norm(w, f"{at}.out.1", EMBED_EPS), config.dim**0.5

    def __call__(self, x: mx.array) -> mx.array:
        return self.norm(self.linear(x)) * self.scale


# ---- operations ----------------------------------------------------------------------------------


class Norm:
    """Layer norm in float32."""

    def __init__(self, w: Weights, at: str, eps: float) -> None:
        self._norm = partial(mx.fast.layer_norm, weight=w[f"{at}.weight"], bias=w[f"{at}.bias"], eps=eps)

    def __call__(self, x: mx.array) -> mx.array:
        return self._norm(x.astype(mx.float32))


class WindowConv:
    """A convolution over time as one matrix product over windows."""

    def __init__(self, w: Weights, at: str, taps: int, left: int, right: int = 0) -> None:
        self.linear, self.taps, self.pad = w.linear(at), taps, (left, right)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear(self.windows(x.astype(self.linear.weight.dtype)))

    def windows(self, x: mx.array) -> mx.array:
        """(B, T, C) -> (B, T, taps * C)"""
        padded, n = mx.pad(x, [(0, 0), self.pad, (0, 0)]), x.shape[1]
        return mx.concatenate([padded[:, i : i + n] for i in range(self.taps)], axis=-1)

    def of_channels(self, channels: slice) -> mx.array:
        """Returns the weights of these input channels, (taps * c, N)."""
        weight = mx.unflatten(self.linear.weight, 1, (self.taps, -1))
        return mx.flatten(weight[:, :, channels], 1).T


def distance_scores(q: mx.array, p: mx.array, keys: int) -> mx.array:
    """As models.conformer.distance_scores."""
    raw = q @ p
    b, h, m, w = raw.shape
    return mx.as_strided(raw, (b, h, m, keys), (h * m * w, m * w, w - 1, 1), m - 1)


def padding_mask(lengths: mx.array, size: int) -> mx.array:
    """(B, size), False for padding."""
    return mx.arange(size) < lengths[:, None]


def leaky_relu(x: mx.array, slope: float) -> mx.array:
    return mx.maximum(x, slope * x)
