"""16 kHz filter banks -> x-vector: a 2-D convolutional head, then three densely connected TDNN blocks (CAM++).

Every batch norm is folded at load: into the convolution before it where there is one, else into one scale and shift.
Behind the head everything is (batch, time, channel), so each layer is a matrix product over contiguous rows and a dense
block is one buffer that its layers fill from left to right.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import XVECTOR_DIM, CampplusConfig

SEGMENT = 100  # frames of 20 ms per average of the context
DILATIONS = (1, 2, 2)  # of the three blocks


class ResBlock(nn.Module):
    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, (stride, 1), 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.shortcut = nn.Conv2d(channels, channels, 1, (stride, 1)) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.conv2(F.relu_(self.conv1(x))).add_(self.shortcut(x)))


class Head(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, 1, 1)
        self.layer1 = nn.Sequential(ResBlock(channels, 2), ResBlock(channels, 1))
        self.layer2 = nn.Sequential(ResBlock(channels, 2), ResBlock(channels, 1))
        self.conv2 = nn.Conv2d(channels, channels, 3, (2, 1), 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, F) -> (B, channels * F / 8, T)."""
        # Channels last: a third of the time on a CPU, and what CUDA's kernels need.
        x = x.transpose(1, 2)[:, None]
        x = F.relu_(self.conv1(x).contiguous(memory_format=torch.channels_last))
        return F.relu_(self.conv2(self.layer2(self.layer1(x)))).flatten(1, 2)


class Affine(nn.Module):
    """A folded batch norm with its ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.affine = nn.Parameter(torch.zeros(2, channels))  # scale, shift

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(torch.addcmul(self.affine[1], x, self.affine[0]))


class Pointwise(nn.Conv1d):
    """A convolution of one tap, on (B, T, C)."""

    def __init__(self, channels: int, out: int, bias: bool = True) -> None:
        super().__init__(channels, out, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight[..., 0], self.bias)


class ContextGate(nn.Module):
    """A convolution over time, gated by the means of each segment and of the whole recording."""

    def __init__(self, channels: int, out: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.taps = nn.Linear(channels, 3 * out, bias=False)  # the convolution's three taps, stacked
        self.linear1 = Pointwise(channels, channels // 2)
        self.linear2 = Pointwise(channels // 2, out)

    def forward(self, x: Tensor, counts: Tensor, out: Tensor) -> None:
        """Writes the result to `out` (B, S * SEGMENT, out). x (B, S * SEGMENT, C) is zero after its last frame;
        `counts` (S, 1) is the number of frames in each segment."""
        d = self.dilation
        before, local, behind = self.taps(x).chunk(3, 2)
        local[:, d:] += before[:, :-d]
        local[:, :-d] += behind[:, d:]
        sums = x.unflatten(1, (-1, SEGMENT)).sum(2)
        context = sums / counts + sums.sum(1, keepdim=True) / counts.sum()
        gate = self.linear2(F.relu_(self.linear1(context))).sigmoid_()  # per segment, not per frame
        torch.mul(local.unflatten(1, (-1, SEGMENT)), gate[:, :, None], out=out.unflatten(1, (-1, SEGMENT)))


class DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int, width: int, dilation: int) -> None:
        super().__init__()
        self.nonlinear1 = Affine(channels)
        self.linear1 = Pointwise(channels, width)
        self.cam_layer = ContextGate(width, growth, dilation)

    def forward(self, x: Tensor, frames: int, counts: Tensor, out: Tensor) -> None:
        x = F.relu_(self.linear1(self.nonlinear1(x)))
        x[:, frames:] = 0
        self.cam_layer(x, counts, out)


class DenseBlock(nn.ModuleDict):
    def __init__(self, layers: int, channels: int, growth: int, width: int, dilation: int) -> None:
        super().__init__(
            {f"tdnnd{i + 1}": DenseLayer(channels + i * growth, growth, width, dilation) for i in range(layers)}
        )
        self.channels, self.growth = channels, growth

    def forward(self, x: Tensor, frames: int, counts: Tensor) -> Tensor:
        """(B, T, channels) -> (B, T, channels + layers * growth)."""
        grown = x.new_empty(*x.shape[:2], self.channels + len(self) * self.growth)
        grown[..., : self.channels] = x
        width = self.channels
        for layer in self.values():
            layer(grown[..., :width], frames, counts, out=grown[..., width : width + self.growth])
            width += self.growth
        return grown


class Transit(nn.Module):
    def __init__(self, channels: int, bias: bool) -> None:
        super().__init__()
        self.nonlinear = Affine(channels)
        self.linear = Pointwise(channels, channels // 2, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.nonlinear(x))


class Tdnn(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(channels, out, 5, stride=2, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.linear(x)).transpose(1, 2)


class Dense(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.linear = Pointwise(channels, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Xvector(nn.Module):
    def __init__(self, cfg: CampplusConfig) -> None:
        super().__init__()
        self.tdnn = Tdnn(cfg.head_channels * cfg.feat_dim // 8, cfg.init_channels)
        channels, width = cfg.init_channels, cfg.bottleneck * cfg.growth
        for i, (layers, dilation) in enumerate(zip(cfg.block_layers, DILATIONS), 1):
            self.add_module(f"block{i}", DenseBlock(layers, channels, cfg.growth, width, dilation))
            channels += layers * cfg.growth
            # The last one's bias is a batch norm that upstream has as a layer of its own.
            self.add_module(f"transit{i}", Transit(channels, bias=i == len(DILATIONS)))
            channels //= 2
        self.dense = Dense(2 * channels, XVECTOR_DIM)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tdnn(x)
        frames = x.shape[1]
        segments = -(-frames // SEGMENT)
        x = F.pad(x, (0, 0, 0, segments * SEGMENT - frames))
        counts = x.new_full((segments, 1), SEGMENT)
        counts[-1] = frames - SEGMENT * (segments - 1)
        x = self.transit1(self.block1(x, frames, counts))
        x = self.transit2(self.block2(x, frames, counts))
        x = self.transit3(self.block3(x, frames, counts))
        x = F.relu_(x[:, :frames])
        return self.dense(torch.cat([x.mean(1), x.std(1)], 1))


class Campplus(nn.Module):
    def __init__(self, cfg: CampplusConfig) -> None:
        super().__init__()
        self.head = Head(cfg.head_channels)
        self.xvector = Xvector(cfg)

    def forward(self, fbank: Tensor) -> Tensor:
        """Filter banks (B, T, 80) of recordings of equal length -> x-vectors (B, 192)."""
        return self.xvector(self.head(fbank))
