"""The GPT-2 backbone of Turbo's and Nano's T3."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import T3Config
from .layers import T3_REFERENCE, T3Operations, attend, gelu
from .llama import KV


class Attention(nn.Module):
    def __init__(self, config: T3Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.c_attn = nn.Linear(config.dim, 3 * config.dim)
        self.c_proj = nn.Linear(config.dim, config.dim)

    def forward(self, qkv: Tensor, layer: int, kv: KV | None) -> Tensor:
        """(B, T, 3*D) -> (B, T, D), before the output projection."""
        if (fused := getattr(kv, "fused", None)) is not None:
            return fused(layer, qkv, None)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, T, Dh)
        return attend(q, k, v, causal=True) if kv is None else kv(layer, q, k, v)


class MLP(nn.Module):
    def __init__(self, config: T3Config) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.dim, config.ff)
        self.c_proj = nn.Linear(config.ff, config.dim)


class LayerNorm(nn.LayerNorm):
    """Computes in float32."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype == torch.float32:
            return torch.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class Block(nn.Module):
    def __init__(self, config: T3Config) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.dim, config.norm_eps)
        self.attn = Attention(config)
        self.ln_2 = LayerNorm(config.dim, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, layer: int, kv: KV | None, ops: T3Operations) -> Tensor:
        qkv = ops.norm_linear(x, self.ln_1, self.attn.c_attn, None)
        x = ops.linear_add(self.attn(qkv, layer, kv), self.attn.c_proj, x)
        return ops.linear_add(ops.norm_linear(x, self.ln_2, self.mlp.c_fc, gelu), self.mlp.c_proj, x)


class Gpt2(nn.Module):
    def __init__(self, config: T3Config) -> None:
        super().__init__()
        self.wpe = nn.Embedding(config.max_positions, config.dim)
        self.h = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.ln_f = LayerNorm(config.dim, config.norm_eps)

    def forward(
        self, x: Tensor, positions: Tensor, kv: KV | None = None, ops: T3Operations = T3_REFERENCE
    ) -> Tensor:
        """As Llama's: x (B, T, D) at positions (B|1, T) -> (B, T, D); `kv` None is plain causal attention."""
        x = x + self.wpe(positions)
        for i, block in enumerate(self.h):
            x = block(x, i, kv, ops)
        return ops.norm(x, self.ln_f)
