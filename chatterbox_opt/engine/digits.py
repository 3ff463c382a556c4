"""A weight -> digits and scales, and no further: a packed checkpoint holds these. The forms that products read, which
differ by processor and library, are made of them in quantize.py. A linear is plain, or one that was stored."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..models.stored import StoredLinear

GROUP = 32  # int4: weights that share one scale
Digits = dict[str, Tensor]


def digits_of(linear: nn.Linear | StoredLinear, quantize: Callable[[Tensor], Digits]) -> Digits:
    return linear.read() if isinstance(linear, StoredLinear) else quantize(linear.weight.detach())


def int8_digits(weight: Tensor) -> Digits:
    """For the CPU: (N, K) int8 and (N,) float64."""
    weight = weight.float()
    scale = weight.abs().amax(1).clamp(min=1e-8).double() / 127
    zero = torch.zeros(len(weight), dtype=torch.long)
    quantized = torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)
    return {"digits": quantized.int_repr(), "scale": scale}


def int8_gpu_digits(weight: Tensor) -> Digits:
    """For CUDA and MPS: (N, K) int8 and (N,) bfloat16."""
    weight = weight.float()
    scale = weight.abs().amax(1).clamp(min=1e-8) / 127
    return {"digits": (weight / scale[:, None]).round_().to(torch.int8), "scale": scale.to(torch.bfloat16)}


def int4_digits(weight: Tensor) -> Digits:
    """(N, K/2) uint8, two digits each, and (K/32, N, 2) bfloat16: a weight is (digit - 8) * scale + offset."""
    groups = weight.float().unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = ((high - low) / 15).clamp(min=1e-8)
    digits = ((groups - low) / scale).round_().clamp_(0, 15).to(torch.uint8).flatten(1)
    table = torch.cat([scale, low + 8 * scale], -1).transpose(0, 1).contiguous().to(torch.bfloat16)
    return {"digits": digits[:, ::2] << 4 | digits[:, 1::2], "scale": table}


def half_digits(weight: Tensor) -> Digits:
    """(N, K) float16. What lies beyond its range becomes its largest, as the product has it."""
    most = torch.finfo(torch.float16).max
    return {"half": weight.float().clamp(-most, most).half()}


def quantized_tensor(digits: Tensor, scale: Tensor) -> Tensor:
    """Digits of the CPU's int8 as torch's quantized tensor."""
    return torch._make_per_channel_quantized_tensor(digits, scale, torch.zeros(len(scale), dtype=torch.long), 0)


@contextmanager
def unannounced() -> Iterator[None]:
    """torch 2.15 announces the end of quantized tensors, and has no other way in yet. Around threads, and not inside
    them: the filters of warnings belong to the process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*quantized tensor creation", category=UserWarning)
        yield
