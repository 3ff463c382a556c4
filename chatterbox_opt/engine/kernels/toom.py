"""1-D convolutions with fewer multiplications, for the CPU in float32: Toom-Cook in blocks of 4 taps by 4 outputs.

Four outputs of four taps take 16 products; evaluated at seven points of a polynomial, 7. A kernel of 11 taps is three
such blocks, and as blocks and outputs have the same stride, all three share one transform of the input. Between the
transforms are matrix products over contiguous rows, and all is written into buffers that fit the processor's cache.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 4  # taps and outputs
POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5)  # and infinity
TILE = 1 << 18  # input samples, all channels counted, worked on at a time: 1 MB
FEWEST = 128, 7  # channels and taps from which on the saved products outweigh the transforms (measured on AVX2)


def worthwhile(conv: nn.Conv2d) -> bool:
    """Whether a ToomConv can do what `conv` does, and is faster."""
    same = conv.stride[1] == 1 and 2 * conv.padding[1] == (conv.kernel_size[1] - 1) * conv.dilation[1]
    return same and min(conv.in_channels, conv.out_channels) >= FEWEST[0] and conv.kernel_size[1] >= FEWEST[1]


class ToomConvs:
    """The vocoder's `convolve`: convolutions for which it is worthwhile are ToomConvs, the others as they are."""

    def __init__(self, convs: Iterable[nn.Conv2d]) -> None:
        workspace = Workspace()
        self.fast: dict[nn.Module, ToomConv] = {conv: ToomConv(conv, workspace) for conv in convs if worthwhile(conv)}

    def __call__(self, x: Tensor, conv: nn.Module) -> Tensor:
        return self.fast.get(conv, conv)(x)


class Workspace(threading.local):
    """Buffers reused by every call, one set per thread: fresh memory pages cost more than the computation."""

    def __init__(self) -> None:
        self._parts: dict[str, Tensor] = {}

    def take(self, name: str, like: Tensor, *shape: int) -> Tensor:
        size = math.prod(shape)
        part = self._parts.get(name)
        if part is None or part.numel() < size or part.dtype != like.dtype:
            part = self._parts[name] = like.new_empty(size)
        return part[:size].view(shape)


class ToomConv:
    """Computes what `conv` does, on (B, C, 1, T) with channels last. Its weights take twice the memory."""

    def __init__(self, conv: nn.Conv2d, workspace: Workspace) -> None:
        self.taps, self.dilation = conv.kernel_size[1], conv.dilation[1]
        self.groups = -(-self.taps // BLOCK)
        self.weight = at_points(conv.weight.squeeze(2), self.groups)
        self.bias = conv.bias
        self.workspace = workspace

    def __call__(self, x: Tensor) -> Tensor:
        rows = [self._row(row.squeeze(1).t()) for row in x]
        out = torch.stack(rows) if len(rows) > 1 else rows[0][None]
        return out.mT.unsqueeze(2)

    def _row(self, x: Tensor) -> Tensor:
        """(T, C) contiguous -> (T, C)."""
        (time, channels), d = x.shape, self.dilation
        stride = BLOCK * d
        blocks = -(-time // stride)
        step = max(1, min(blocks, TILE // (stride * channels)))
        wide = self.weight.shape[-1]
        out = x.new_empty(blocks * stride, wide)
        first = -((self.taps - 1) * d // 2)  # first input row of the first output
        for at in range(0, blocks, step):
            n = min(step, blocks - at)
            tile = self.workspace.take("tile", x, (n + self.groups) * stride, channels)
            _fill(tile, x, at * stride + first)
            values = self._evaluate(tile, n + self.groups - 1)
            product = self.workspace.take("product", x, 7, n * d, wide)
            torch.bmm(values[:, : n * d], self.weight[0], out=product)
            for g in range(1, self.groups):
                product.baddbmm_(values[:, g * d : (g + n) * d], self.weight[g])
            product[1] += self.bias  # what is added at the point 1 reaches all four outputs alike
            self._interpolate(product.view(7, n, -1), out[at * stride : (at + n) * stride].view(n, BLOCK, -1))
        return out[:time]

    def _evaluate(self, tile: Tensor, count: int) -> Tensor:
        """(rows, C) -> (7, count * d, C): the input's polynomials at the seven points.

        Each is the product of (x - p) over the other points, so the factor of all but one, (x - 1/2), comes first.
        """
        d, channels = self.dilation, tile.shape[1]
        half = self.workspace.take("half", tile, *tile.shape)
        torch.sub(tile[d:], tile[:-d], alpha=0.5, out=half[:-d])
        out = self.workspace.take("values", tile, 7, count, d * channels)
        even, odd = self.workspace.take("pair", tile, 2, count, d * channels)
        x, w = (t.view(-1, BLOCK, d * channels) for t in (tile, half))
        w0, w1, w2, w3 = w[:count].unbind(1)
        w4, w5 = w[1 : count + 1, 0], w[1 : count + 1, 1]
        torch.sub(w4, w2, alpha=4, out=even)
        torch.sub(w3, w1, alpha=4, out=odd)
        torch.add(even, odd, out=out[1])
        torch.sub(even, odd, out=out[2])
        torch.sub(w4, w2, out=even)
        torch.sub(w3, w1, out=odd)
        torch.add(even, odd, alpha=2, out=out[3])
        torch.sub(even, odd, alpha=2, out=out[4])
        last = ((0, w4, w2, w0), (5, x[1 : count + 1, 1], x[:count, 3], x[:count, 1]), (6, w5, w3, w1))
        for i, a, b, c in last:
            torch.sub(a, b, alpha=5, out=out[i]).add_(c, alpha=4)
        return out.view(7, count * d, channels)

    def _interpolate(self, m: Tensor, out: Tensor) -> None:
        """(7, n, C) products -> (n, 4, C) outputs: row i takes p^i of each point."""
        even, odd = self.workspace.take("pair", m, 2, *m.shape[1:])
        torch.add(m[1], m[2], out=even)
        torch.sub(m[1], m[2], out=odd)
        torch.add(m[3], m[4], out=m[1])
        even2, odd2 = m[1], m[3].sub_(m[4])
        y0, y1, y2, y3 = out.unbind(1)
        torch.add(even, even2, out=y0).add_(m[0]).add_(m[5])
        torch.add(odd, odd2, alpha=2, out=y1).add_(m[5], alpha=0.5)
        torch.add(even, even2, alpha=4, out=y2).add_(m[5], alpha=0.25)
        torch.add(odd, odd2, alpha=8, out=y3).add_(m[5], alpha=0.125).add_(m[6])


def _fill(tile: Tensor, x: Tensor, start: int) -> None:
    """Copies rows of `x` from `start` on to `tile`, and zeros where `x` has no rows."""
    before, after = max(0, -start), max(0, start + len(tile) - len(x))
    tile[:before].zero_()
    tile[len(tile) - after :].zero_()
    tile[before : len(tile) - after] = x[start + before : start + len(tile) - after]


def at_points(weight: Tensor, groups: int) -> Tensor:
    """Taps (O, I, K) -> (groups, 7, I, O): each block of taps as a polynomial at the points, divided by the product of
    a point's distances to the others."""
    taps = F.pad(weight.double(), (0, groups * BLOCK - weight.shape[-1])).unflatten(-1, (groups, BLOCK))
    rows = []
    for i, p in enumerate(POINTS):
        distance = 1.0
        for k, q in enumerate(POINTS):
            distance *= p - q if k != i else 1.0
        rows.append([p**j / distance for j in range(BLOCK)])
    rows.append([0.0] * (BLOCK - 1) + [1.0])
    powers = torch.tensor(rows, dtype=torch.float64, device=weight.device)
    return torch.einsum("pj,oigj->gpio", powers, taps).to(weight.dtype).contiguous()
