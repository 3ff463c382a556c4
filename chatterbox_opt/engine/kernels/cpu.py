"""Operations of the networks as a CPU runs them fastest, in plain torch. Their twins are the models' own, which suit a
GPU: there one larger operation is better than two that move less memory, on a CPU often not."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models import layers
from ...models.llama import RMSNorm

SCORES = 2**20  # of one head at a time: 2 MB in bf16


@cache
def _rms_constants(eps: float, width: int) -> tuple[Tensor, Tensor]:
    """sqrt(eps) and 1 / sqrt(width). As Python numbers they would become tensors in every call, an operation each."""
    with torch.inference_mode(False):
        return torch.tensor([math.sqrt(eps), width**-0.5], device="cpu", dtype=torch.float32).unbind()


def rms_norm(x: Tensor, norm: RMSNorm) -> Tensor:
    """Returns norm(x), an RMSNorm in float32, in half the time: torch makes eight operations of F.rms_norm."""
    root, part = _rms_constants(norm.eps, norm.width)  # traced, sizes of x are tensors
    mean = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * part
    return x / torch.hypot(mean, root) * norm.weight


def rms_norm_linear(
    x: Tensor, norm: RMSNorm, linear: nn.Module, act: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    y = linear(rms_norm(x, norm))
    return y if act is None else act(y)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """layers.rotate as one complex product."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.view_as_complex(rope.unsqueeze(2))).flatten(-2).to(x.dtype)


def rotate_(x: Tensor, rope: Tensor) -> None:
    """Rotates a single position in place: x (B, n, H, Dh) by rope (B|1, 1, Dh/2, 2)."""
    if x.is_cpu and x.dtype == torch.float32:
        torch.view_as_complex(x.view(*x.shape[:-1], -1, 2)).mul_(torch.view_as_complex(rope).unsqueeze(2))
    else:
        x.copy_(layers.rotate(x, rope))


def mish(x: Tensor) -> Tensor:
    """F.mish in float32, with one exponential instead of three functions: tanh(log(1 + e^x)) = n / (n + 1), where n is
    e^x + e^2x / 2, to the same precision. Above 20 the quotient is 1, and e^2x would overflow later."""
    n = x.clamp(max=20).exp_()
    n.addcmul_(n, n, value=0.5)
    return n.div_(n + 1).mul_(x)


def attend_biased(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """conformer.attend_biased without the copy of the bias."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


def attend_all(qkv: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    """estimator.attend_all in bf16. A mask is added to scores."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return attention_by_products(q, k, v, mask).transpose(1, 2).flatten(2)


def attention_by_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k / sqrt(d) + mask) v as plain products, AMD's bf16 units at full width: torch's fused kernel runs them
    at a third of that, but those of AMX at their best. q, k, v (B, H, T, d), mask (B, 1, 1, T). As many heads at a time
    as there are threads, and no more scores of a head than fit the cache between the two products."""
    (b, h, n, size), heads = q.shape, max(1, torch.get_num_threads())
    scale = int(size) ** -0.5  # traced, `size` is a tensor, and its power of the default dtype at that time
    q, k, v = (t.reshape(b * h, n, size) for t in (q * scale, k, v))  # 1/8 at heads of 64: exact in bf16
    mask = None if mask is None else mask.expand(b, h, 1, n).reshape(b * h, 1, n)
    out, rows = torch.empty_like(q), max(1, SCORES // n)
    for i in range(0, b * h, heads):
        keys, values = k[i : i + heads].mT, v[i : i + heads]
        for a in range(0, n, rows):
            scores = torch.bmm(q[i : i + heads, a : a + rows], keys)
            scores = scores if mask is None else scores.add_(mask[i : i + heads])
            out[i : i + heads, a : a + rows] = torch.bmm(scores.softmax(-1), values)
    return out.view(b, h, n, size)
