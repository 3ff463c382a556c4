"""Quantizes weights to digits and scales, which is what a packed checkpoint stores. quantize.py turns these into the
layouts that products read, which differ by processor and library."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..models.stored import StoredLinear

GROUP = 32  # int4: weights that share one scale
Digits = dict[str, Tensor]


def digits_of(linear: nn.Linear | StoredLinear, quantize: Callable[[Tensor], Digits]) -> Digits:
    return linear.read() if isinstance(linear, StoredLinear) else quantize(linear.weight.detach())


def int8_digits(weight: Tensor) -> Digits:
    """Returns digits for the CPU: (N, K) int8 and scales (N,) float64."""
    weight = weight.float()
    scale = weight.abs().amax(1).clamp(min=1e-8).double() / 127
    zero = torch.zeros(len(weight), dtype=torch.long)
    quantized = torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)
    return {"digits": quantized.int_repr(), "scale": scale}


def int8_gpu_digits(weight: Tensor) -> Digits:
    """Returns digits for CUDA and MPS: (N, K) int8 and scales (N,) bfloat16."""
    weight = weight.float()
    scale = weight.abs().amax(1).clamp(min=1e-8) / 127
    return {"digits": (weight / scale[:, None]).round_().to(torch.int8), "scale": scale.to(torch.bfloat16)}


def int4_digits(weight: Tensor) -> Digits:
    """Returns (N, K/2) uint8, two digits each, and (K/32, N, 2) bfloat16: a weight is (digit - 8) * scale + offset."""
    groups = weight.float().unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = ((high - low) / 15).clamp(min=1e-8)
    digits = ((groups - low) / scale).round_().clamp_(0, 15).to(torch.uint8).flatten(1)
    table = torch.cat([scale, low + 8 * scale], -1).transpose(0, 1).contiguous().to(torch.bfloat16)
    return {"digits": digits[:, ::2] << 4 | digits[:, 1::2], "scale": table}


def half_digits(weight: Tensor) -> Digits:
    """Returns (N, K) float16. Numbers out of its range are clamped, as the product does; infinity and NaN stay."""
    weight, most = weight.float(), torch.finfo(torch.float16).max
    clamped = weight.clamp(-most, most)
    if not weight.sum().isfinite():  # rare, and the next line takes longer than the others
        clamped = torch.where(weight.isinf(), weight, clamped)
    return {"half": clamped.half()}


def has_quantized_tensors() -> bool:
    """Whether torch has what int8 on a CPU needs; it announces to remove it."""
    return hasattr(torch, "_make_per_channel_quantized_tensor") and hasattr(torch.ops.quantized, "linear_prepack")


def quantized_tensor(digits: Tensor, scale: Tensor) -> Tensor:
    """Returns digits of int8_digits() as torch's quantized tensor."""
    return torch._make_per_channel_quantized_tensor(digits, scale, torch.zeros(len(scale), dtype=torch.long), 0)


def ignore_deprecation_warning() -> None:
    """Suppresses torch's deprecation warning for quantized tensors, which have no replacement yet. For good: filters
    are the process's, and to put them back afterwards would undo what other threads set meanwhile."""
    warnings.filterwarnings("ignore", message=".*quantized tensor creation", category=UserWarning)
