"""The velocity field of the flow: 1-D resnets and transformer blocks at full frame rate, one skip from first to last.

Everything is (B, T, C). Convolutions are causal, so padding on the right never reaches a frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import MEL_BINS, FlowConfig
from .conformer import HalfLinear, Norm, WindowConv

CONSTANT = 3 * MEL_BINS  # of the input's channels: mu, speaker and prompt do not change between steps
AttendAll = Callable[[Tensor, Tensor | None, int], Tensor]  # attend_all and what may stand in its place
AddNorm = Callable[[Tensor, Tensor, Norm], tuple[Tensor, Tensor]]  # the same of add_norm
Activate = Callable[[Tensor], Tensor]  # the same of F.mish


def causal_conv(n_in: int, n_out: int) -> WindowConv:
    return WindowConv(n_in, n_out, 3, 2)


class TimeMLP(nn.Module):
    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.dim = MEL_BINS + CONSTANT
        self.linear_1 = nn.Linear(self.dim, 4 * config.channels)
        self.linear_2 = nn.Linear(4 * config.channels, 4 * config.channels)

    def forward(self, t: Tensor) -> Tensor:
        """(S,) times in [0, 1] -> (S, 4C)."""
        half = self.dim // 2
        rate = torch.exp(torch.arange(half, device=t.device).float() * -(math.log(10_000) / (half - 1)))
        angle = 1000 * t[:, None] * rate
        return self.linear_2(F.silu(self.linear_1(torch.cat([angle.sin(), angle.cos()], -1))))


class ConvBlock(nn.Module):
    """Convolution, norm, Mish."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv = causal_conv(n_in, n_out)
        self.norm = Norm(n_out)

    def forward(self, x: Tensor, mish: Activate) -> Tensor:
        return self.finish(self.conv(x), mish)

    def finish(self, x: Tensor, mish: Activate) -> Tensor:
        """What follows the convolution."""
        return mish(self.norm(x))


class Resnet(nn.Module):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.mlp = nn.Linear(4 * n_out, n_out)
        self.block1 = ConvBlock(n_in, n_out)
        self.block2 = ConvBlock(n_out, n_out)
        self.res_conv = HalfLinear(n_in, n_out)

    def forward(self, x: Tensor, time: Tensor, mish: Activate) -> Tensor:
        return self.block2(self.block1(x, mish) + time, mish) + self.res_conv(x)


class FirstResnet(Resnet):
    """A Resnet that multiplies the channels that are constant between steps once per utterance."""

    def constant(self, channels: Tensor) -> tuple[Tensor, Tensor]:
        """Constant channels (B, T, 240) -> their part of the convolution and of the shortcut, (B, T, C) each, biases
        included."""
        conv, short = self.block1.conv, self.res_conv
        weight = conv.weight.unflatten(1, (conv.taps, -1))[:, :, MEL_BINS:].flatten(1)
        channels = channels.to(weight.dtype)
        through = F.linear(conv.windows(channels), weight, conv.bias)
        return through.float(), F.linear(channels, short.weight[:, MEL_BINS:], short.bias).float()

    def forward(self, x: Tensor, time: Tensor, mish: Activate, constant: tuple[Tensor, Tensor]) -> Tensor:
        """x (B, T, 80) -> (rows of `constant`, T, C). These are B, or 2B: with guidance both halves have the same x."""
        conv, copies = self.block1.conv, constant[0].shape[0] // x.shape[0]
        weight = conv.weight.unflatten(1, (conv.taps, -1))[:, :, :MEL_BINS].flatten(1)
        x = x.to(weight.dtype)
        through = F.linear(conv.windows(x), weight).repeat(copies, 1, 1) + constant[0]
        short = F.linear(x, self.res_conv.weight[:, :MEL_BINS]).repeat(copies, 1, 1) + constant[1]
        return self.block2(self.block1.finish(through, mish) + time, mish) + short


def attend_all(qkv: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    """Attention of all frames to all: qkv (B, T, 3 H Dh) -> (B, T, H Dh); `mask` as Estimator.forward has it."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def add_norm(x: Tensor, update: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """Returns x + update and its norm."""
    x = x + update
    return x, norm(x)


@dataclass(frozen=True)
class EstimatorOperations:
    """The operations that an estimator is handed in each call; the defaults are the reference."""

    attend_all: AttendAll = attend_all
    add_norm: AddNorm = add_norm
    mish: Activate = F.mish


ESTIMATOR_REFERENCE = EstimatorOperations()


class Attention(nn.Module):
    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.heads, inner = config.est_heads, config.est_heads * config.est_head_dim
        self.qkv = HalfLinear(config.channels, 3 * inner, bias=False)
        self.to_out = HalfLinear(inner, config.channels)

    def forward(self, x: Tensor, mask: Tensor | None, attend: AttendAll) -> Tensor:
        return self.to_out(attend(self.qkv(x), mask, self.heads))


class Transformer(nn.Module):
    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.norm1 = Norm(config.channels)
        self.attn1 = Attention(config)
        self.norm3 = Norm(config.channels)
        self.ff_in = HalfLinear(config.channels, 4 * config.channels)
        self.ff_out = HalfLinear(4 * config.channels, config.channels)

    def feed(self, x: Tensor) -> Tensor:
        return self.ff_out(F.gelu(self.ff_in(x)))


class Stage(nn.Module):
    """A resnet and the transformer blocks behind it; the first and the last stage end in a convolution."""

    def __init__(self, config: FlowConfig, resnet: Resnet, conv: bool = False) -> None:
        super().__init__()
        self.resnet = resnet
        self.blocks = nn.ModuleList(Transformer(config) for _ in range(config.block_layers))
        self.conv = causal_conv(config.channels, config.channels) if conv else None

    def forward(self, x: Tensor, mask: Tensor | None, ops: EstimatorOperations) -> Tensor:
        """The transformer blocks alone, each x + attention(norm(x)), then x + feed(norm(x))."""
        normed = self.blocks[0].norm1(x)
        for i, block in enumerate(self.blocks, 1):
            x, normed = ops.add_norm(x, block.attn1(normed, mask, ops.attend_all), block.norm3)
            update = block.feed(normed)
            if i == len(self.blocks):
                x = x + update
            else:
                x, normed = ops.add_norm(x, update, self.blocks[i].norm1)
        return x


class Estimator(nn.Module):
    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        c = config.channels
        self.time_mlp = TimeMLP(config)
        self.time_embed_mixer = nn.Linear(8 * c, 4 * c, bias=False) if config.meanflow else None
        self.down = Stage(config, FirstResnet(MEL_BINS + CONSTANT, c), conv=True)
        self.mid = nn.ModuleList(Stage(config, Resnet(c, c)) for _ in range(config.mid_blocks))
        self.up = Stage(config, Resnet(2 * c, c), conv=True)
        self.final_block = ConvBlock(c, c)
        self.final_proj = HalfLinear(c, MEL_BINS)

    def time_table(self, span: Tensor) -> Tensor:
        """(S + 1,) times -> (S, stages, C): what each resnet adds at each step, the same for every utterance."""
        t = self.time_mlp(span)
        t = t[:-1] if self.time_embed_mixer is None else self.time_embed_mixer(torch.cat([t[:-1], t[1:]], 1))
        t = F.mish(t)
        return torch.stack([stage.resnet.mlp(t) for stage in (self.down, *self.mid, self.up)], 1)

    def constant(self, mu: Tensor, speaker: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """mu and prompt (B, T, 80), speaker (B, 80) -> what they add in every step, (B, T, C) twice."""
        speaker = speaker[:, None].expand(-1, mu.shape[1], -1)
        return self.down.resnet.constant(torch.cat([mu, speaker, prompt], -1))

    def forward(
        self, x: Tensor, time: Tensor, constant: tuple[Tensor, Tensor], mask: Tensor | None = None,
        ops: EstimatorOperations = ESTIMATOR_REFERENCE,
    ) -> Tensor:  # fmt: skip
        """x (B, T, 80), time (stages, C), constant as `constant` returns it, for B or 2B rows -> velocities
        (B | 2B, T, 80) in float32. `mask` (rows, 1, 1, T) is True at keys that exist, or 0 there and -inf elsewhere."""
        skip = x = self.down(self.down.resnet(x, time[0], ops.mish, constant), mask, ops)
        x = self.down.conv(x).float()
        for i, stage in enumerate(self.mid):
            x = stage(stage.resnet(x, time[1 + i], ops.mish), mask, ops)
        x = self.up(self.up.resnet(torch.cat([x, skip], -1), time[-1], ops.mish), mask, ops)
        return self.final_proj(self.final_block(self.up.conv(x), ops.mish)).float()
