"""Speech tokens at 25 Hz -> hidden states at 50 Hz: a conformer without convolutions, up-sampled between its halves.

Everything is (B, T, C). `lengths` None means that every row is full.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import FlowConfig

BLOCK = 256  # queries per attention call: all position scores of 40 s of audio would take a gigabyte


class HalfLinear(nn.Linear):
    """Casts its input to the dtype of its weights. It marks the products for which half precision is safe."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class WindowConv(nn.Module):
    """A convolution over time as one matrix product: each frame's window of `taps` frames, (B, T, taps * C), times a
    weight in the same layout, without transposes. `left` and `right` are the frames of zero padding."""

    def __init__(self, n_in: int, n_out: int, taps: int, left: int, right: int = 0) -> None:
        super().__init__()
        self.taps, self.left, self.right = taps, left, right
        self.weight = nn.Parameter(torch.zeros(n_out, taps * n_in))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.windows(x.to(self.weight.dtype)), self.weight, self.bias)

    def windows(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, taps * C)."""
        padded = F.pad(x, (0, 0, self.left, self.right))
        return padded.unfold(1, self.taps, 1).transpose(2, 3).flatten(2)


class Norm(nn.LayerNorm):
    """Computes in float32: in half precision an epsilon of 1e-12 is zero."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.normalized_shape, self.weight, self.bias, self.eps)


def position_waves(dim: int, length: int, device: torch.device) -> Tensor:
    """Returns (2 * length - 1, dim): sines and cosines of a query's position minus its key's, from length - 1 down to
    -(length - 1). Computed in every call: cheap, and a captured graph may only read tensors that outlive it."""
    left = torch.arange(length - 1, -length, -1, dtype=torch.float32, device=device)[:, None]
    rate = torch.exp(torch.arange(0, dim, 2, dtype=torch.float32, device=device) * -(math.log(10_000.0) / dim))
    return torch.stack([(left * rate).sin(), (left * rate).cos()], -1).flatten(1)


# (q, k, v, bias, scale), each of q, k and v (B, H, T, Dh) and the bias (B, H, queries, keys) -> (B, H, queries, Dh)
AttendBiased = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


def attend_biased(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """softmax(q k scale + bias) v. CUDA's kernels read a bias sixteen bytes at a time from the start of each row, so
    its rows must be dense."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.contiguous(), scale=scale)


class RelativeAttention(nn.Module):
    """Attention with Transformer-XL's position scores: q.k + u.k + q.p + v.p, where p is the wave of the distance."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.heads, dim = config.heads, config.dim
        self.qkv = HalfLinear(dim, 3 * dim)
        self.linear_out = HalfLinear(dim, dim)
        self.linear_pos = HalfLinear(dim, dim, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(config.heads, dim // config.heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(config.heads, dim // config.heads))

    def forward(self, x: Tensor, waves: Tensor, mask: Tensor | None, attend: AttendBiased) -> Tensor:
        """x (B, T, C), waves of position_waves, mask (B, 1, 1, T) with True at keys that exist -> (B, T, C)."""
        n, size = x.shape[1], x.shape[2] // self.heads
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, size)).permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, T, d)
        p = self.linear_pos(waves).unflatten(-1, (self.heads, size)).permute(1, 2, 0)  # (H, d, 2T - 1)
        scale = 1 / math.sqrt(size)
        content = q + self.pos_bias_u[:, None].to(q.dtype)
        place = (q + self.pos_bias_v[:, None].to(q.dtype)) * scale
        out = []
        for a in range(0, n, BLOCK):
            b = min(a + BLOCK, n)
            scores = distance_scores(place[:, :, a:b], p[:, :, n - b : 2 * n - 1 - a], n)
            if mask is not None:
                scores = scores.masked_fill(~mask, -torch.inf)
            out.append(attend(content[:, :, a:b], k, v, scores, scale))
        return self.linear_out(torch.cat(out, 2).transpose(1, 2).flatten(2))


def distance_scores(q: Tensor, p: Tensor, keys: int) -> Tensor:
    """Returns q.p of m queries and all keys, (B, H, m, keys), as a view. q (B, H, m, d); p (H, d, m + keys - 1) are the
    waves of all their distances. Query i and key j have wave m - 1 - i + j: each row of the result starts one element
    further left in its row of the product, which is a matter of strides."""
    raw = (q @ p).contiguous()
    b, h, m, w = raw.shape
    return raw.as_strided((b, h, m, keys), (h * m * w, m * w, w - 1, 1), m - 1)


class FeedForward(nn.Module):
    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.w_1 = HalfLinear(config.dim, config.ff)
        self.w_2 = HalfLinear(config.ff, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_2(F.silu(self.w_1(x)))


class Layer(nn.Module):
    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.norm_mha = Norm(config.dim, eps=1e-12)
        self.self_attn = RelativeAttention(config)
        self.norm_ff = Norm(config.dim, eps=1e-12)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, waves: Tensor, mask: Tensor | None, attend: AttendBiased) -> Tensor:
        x = x + self.self_attn(self.norm_mha(x), waves, mask, attend)
        return x + self.feed_forward(self.norm_ff(x))


class Embed(nn.Module):
    """Linear layer and norm, times the square root of the width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out = nn.Sequential(HalfLinear(dim, dim), Norm(dim, eps=1e-5))
        self.scale = math.sqrt(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x) * self.scale


class Lookahead(nn.Module):
    """A convolution over the next positions, then one over the previous two."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.conv1 = WindowConv(config.dim, config.dim, config.pre_lookahead + 1, 0, config.pre_lookahead)
        self.conv2 = WindowConv(config.dim, config.dim, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.leaky_relu(self.conv1(x)))


class Upsample(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = WindowConv(dim, dim, 5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.repeat_interleave(2, 1))


class Conformer(nn.Module):
    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.embed = Embed(config.dim)
        self.pre_lookahead_layer = Lookahead(config)
        self.encoders = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.up_layer = Upsample(config.dim)
        self.up_embed = Embed(config.dim)
        self.up_encoders = nn.ModuleList(Layer(config) for _ in range(config.up_layers))
        self.after_norm = Norm(config.dim, eps=1e-5)

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, attend: AttendBiased = attend_biased
    ) -> Tensor:
        """Embedded tokens (B, T, C), of which row i has lengths[i] -> hidden states (B, 2T, C) in float32."""
        x = self.embed(x)
        if lengths is not None:  # a row's look-ahead must see zeros after its end, as it would alone
            x = x * padding_mask(lengths, x.shape[1]).unsqueeze(-1)
        x = self._run(self.encoders, self.pre_lookahead_layer(x).float(), lengths, attend)
        x = self.up_embed(self.up_layer(x))
        x = self._run(self.up_encoders, x, None if lengths is None else 2 * lengths, attend)
        return self.after_norm(x)

    def _run(self, layers: nn.ModuleList, x: Tensor, lengths: Tensor | None, attend: AttendBiased) -> Tensor:
        waves = position_waves(x.shape[2], x.shape[1], x.device)
        mask = None if lengths is None else padding_mask(lengths, x.shape[1])[:, None, None]
        for layer in layers:
            x = layer(x, waves, mask, attend)
        return x


def padding_mask(lengths: Tensor, size: int) -> Tensor:
    """Returns (B, size), True at positions below each row's length (B,)."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]
