"""Operations of the networks as a CPU runs them fastest, in plain torch. Their twins are the models' own, which suit a
GPU: there one larger operation is better than two that move less memory, on a CPU often not."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from ...models import layers


@cache
def _rms_constants(eps: float, width: int) -> tuple[Tensor, Tensor]:
    """sqrt(eps) and 1 / sqrt(width). As Python numbers they would become tensors in every call, an operation each."""
    with torch.inference_mode(False):
        return torch.tensor([math.sqrt(eps), width**-0.5], device="cpu").unbind()


def rms_norm(x: Tensor, norm: nn.Module) -> Tensor:
    """Returns norm(x), an RMSNorm in float32, in half the time: torch makes eight operations of F.rms_norm."""
    root, part = _rms_constants(norm.eps, x.shape[-1])
    mean = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * part
    return x / torch.hypot(mean, root) * norm.weight


def rms_norm_linear(
    x: Tensor, norm: nn.Module, linear: nn.Module, act: Callable[[Tensor], Tensor] | None = None
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
