"""The Llama backbone of English and multilingual T3."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import T3Config
from .layers import T3_REFERENCE, T3Operations, attend, rope_table, swiglu

# The cache: called with (layer, q, k, v) of the new positions, each (B, H, T, Dh), it stores k and v, attends to all
# stored positions, and returns (B, T, H*Dh). If it has an attribute `fused` that is not None, that is called instead,
# with (layer, qkv (B, 1, 3*D), rope or None): it splits, rotates, stores and attends at once. See engine/cache.py.
KV = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.width, self.eps = dim, eps

    def forward(self, x: Tensor) -> Tensor:
        # always in float32: bf16 is too coarse for a mean of 1024 squares
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: T3Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv_proj = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.o_proj = nn.Linear(config.dim, config.dim, bias=False)

    def forward(
        self, qkv: Tensor, rope: Tensor, layer: int, kv: KV | None, ops: T3Operations = T3_REFERENCE
    ) -> Tensor:
        """(B, T, 3*D) -> (B, T, D), before the output projection."""
        if (fused := getattr(kv, "fused", None)) is not None:
            return fused(layer, qkv, rope)
        qkv = qkv.unflatten(-1, (3, self.heads, -1))  # (B, T, 3, H, Dh)
        turned = ops.rotate(qkv[:, :, :2].flatten(2, 3), rope)  # (B, T, 2H, Dh)
        q, k = turned.transpose(1, 2).split(self.heads, 1)  # (B, H, T, Dh)
        v = qkv[:, :, 2].transpose(1, 2)
        return attend(q, k, v, causal=True) if kv is None else kv(layer, q, k, v)


class MLP(nn.Module):
    def __init__(self, config: T3Config) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.dim, 2 * config.ff, bias=False)
        self.down_proj = nn.Linear(config.ff, config.dim, bias=False)


class Block(nn.Module):
    def __init__(self, config: T3Config) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rope: Tensor, layer: int, kv: KV | None, ops: T3Operations) -> Tensor:
        attn, mlp = self.self_attn, self.mlp
        qkv = ops.norm_linear(x, self.input_layernorm, attn.qkv_proj, None)
        x = ops.linear_add(attn(qkv, rope, layer, kv, ops), attn.o_proj, x)
        hidden = ops.norm_linear(x, self.post_attention_layernorm, mlp.gate_up_proj, swiglu)
        return ops.linear_add(hidden, mlp.down_proj, x)


class Llama(nn.Module):
    def __init__(self, config: T3Config) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self._rope: Tensor | None = None

    def rope(self, device: torch.device) -> Tensor:
        """Computed once and kept as an attribute: torch.compile ignores functools.cache and would compute it in every
        step."""
        if self._rope is None or self._rope.device != device:
            self._rope = rope_table(self.config, self.config.max_positions, device)
        return self._rope

    def forward(
        self, x: Tensor, positions: Tensor, kv: KV | None = None, ops: T3Operations = T3_REFERENCE
    ) -> Tensor:
        """x (B, T, D) at positions (B|1, T) -> (B, T, D). Without `kv`: plain causal attention, the reference."""
        rope = self.rope(x.device)[positions]
        for i, block in enumerate(self.layers):
            x = block(x, rope, i, kv, ops)
        return ops.norm(x, self.norm)
