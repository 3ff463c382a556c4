"""Operations that more than one network uses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import T3Config


def rope_frequencies(config: T3Config) -> Tensor:
    """Returns (head_dim/2,) radians per position, with Llama 3's scaling."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32)
    freq = 1.0 / (config.rope_theta ** (half / config.head_dim))
    turns = config.rope_original * freq / (2 * math.pi)  # of each frequency over the original context
    blend = ((turns - config.rope_low) / (config.rope_high - config.rope_low)).clamp(0, 1)
    return (1 - blend) * freq / config.rope_factor + blend * freq


def rope_table(config: T3Config, positions: int, device: torch.device) -> Tensor:
    """Returns (positions, head_dim/2, 2): cosine and sine of each position's angles."""
    with torch.inference_mode(False):
        angle = torch.arange(positions, dtype=torch.float32)[:, None] * rope_frequencies(config)
        return torch.stack([angle.cos(), angle.sin()], -1).to(device)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotates x (B, T, H, Dh) by rope (B|1, T, Dh/2, 2), in float32. The two channels of a pair are neighbours: the
    loader has moved channel i + Dh/2 next to channel i."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rope.unsqueeze(2).unbind(-1)
    turned = torch.stack([a * cos - b * sin, a * sin + b * cos], -1)
    return turned.flatten(-2).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """q (B, H, T, Dh), k and v (B, H, S, Dh) -> (B, T, H*Dh)."""
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    return out.transpose(1, 2).flatten(2)


def swiglu(x: Tensor) -> Tensor:
    """(..., 2 F), gate then up -> (..., F)."""
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def apply_norm(x: Tensor, norm: nn.Module) -> Tensor:
    return norm(x)


def norm_linear(x: Tensor, norm: nn.Module, linear: nn.Module, act: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    y = linear(norm(x))
    return y if act is None else act(y)


def linear_add(x: Tensor, linear: nn.Module, residual: Tensor) -> Tensor:
    return residual + linear(x)


@dataclass(frozen=True)
class T3Operations:
    """The operations that T3's backbone is handed in each call. The defaults are the reference; the engine hands in
    functions that return the same faster (engine/operations.py)."""

    norm: Callable[[Tensor, nn.Module], Tensor] = apply_norm
    norm_linear: Callable[[Tensor, nn.Module, nn.Module, Callable[[Tensor], Tensor] | None], Tensor] = norm_linear
    linear_add: Callable[[Tensor, nn.Module, Tensor], Tensor] = linear_add
    rotate: Callable[[Tensor, Tensor], Tensor] = rotate


T3_REFERENCE = T3Operations()


def overlap_add(frames: Tensor, hop: int) -> Tensor:
    """(B, T, n) frames, hop samples apart -> (B, hop (T - 1) + n), n rounded up to whole hops."""
    batch, count, size = frames.shape
    slots = -(-size // hop)
    if size < slots * hop:
        frames = F.pad(frames, (0, slots * hop - size))
    parts = frames.unflatten(-1, (slots, hop))
    out = frames.new_zeros(batch, count + slots - 1, hop)
    for i in range(slots):
        out[:, i : i + count] += parts[:, :, i]
    return out.flatten(1)
