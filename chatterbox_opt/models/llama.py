"""The Llama backbone of English and multilingual T3."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import T3Config
from .layers import attend, linear_add, norm_linear, rope_table, rotate, swiglu

# (layer, q, k, v) of the new positions, each (B, H, T, Dh) -> (B, T, H*Dh): remembers k and v, and attends to
# everything remembered. The engine's cache has this shape. Where it has a `fused` that is not None, that is called
# instead, with (layer, qkv (B, 1, 3*D), rope or None): it splits, turns, remembers and attends at once.
KV = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps
        # Models are built on "meta". A Python number is made a tensor anew in every call, at the cost of an operation.
        self._root, self._part = torch.tensor([math.sqrt(eps), dim**-0.5], device="cpu").unbind()

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32 and x.is_cpu:  # F.rms_norm is eight operations there, and takes twice as long
            mean = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * self._part
            return x / torch.hypot(mean, self._root) * self.weight
        # float32 whatever the weights are: the mean of squares of 1024 bf16 numbers is not one
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: T3Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv_proj = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.o_proj = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, qkv: Tensor, rope: Tensor, layer: int, kv: KV | None) -> Tensor:
        """(B, T, 3*D) -> (B, T, D), not yet projected."""
        if (fused := getattr(kv, "fused", None)) is not None:
            return fused(layer, qkv, rope)
        qkv = qkv.unflatten(-1, (3, self.heads, -1))  # (B, T, 3, H, Dh)
        turned = rotate(qkv[:, :, :2].flatten(2, 3), rope)  # (B, T, 2H, Dh)
        q, k = turned.transpose(1, 2).split(self.heads, 1)  # (B, H, T, Dh)
        v = qkv[:, :, 2].transpose(1, 2)
        return attend(q, k, v, causal=True) if kv is None else kv(layer, q, k, v)


class MLP(nn.Module):
    def __init__(self, config: T3Config) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.dim, 2 * config.ff, bias=False)
        self.down_proj = nn.Linear(config.ff, config.dim, bias=False)


class Block(nn.Module):
    norm_linear = staticmethod(norm_linear)  # the engine may put fused kernels here
    linear_add = staticmethod(linear_add)

    def __init__(self, config: T3Config) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rope: Tensor, layer: int, kv: KV | None) -> Tensor:
        attn, mlp = self.self_attn, self.mlp
        qkv = self.norm_linear(x, self.input_layernorm, attn.qkv_proj)
        x = self.linear_add(attn(qkv, rope, layer, kv), attn.o_proj, x)
        hidden = self.norm_linear(x, self.post_attention_layernorm, mlp.gate_up_proj, swiglu)
        return self.linear_add(hidden, mlp.down_proj, x)


class Llama(nn.Module):
    def __init__(self, config: T3Config) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self._rope: Tensor | None = None

    def rope(self, device: torch.device) -> Tensor:
        """Made once, and an attribute: a compiler that reads past a cache would make it anew in every step."""
        if self._rope is None or self._rope.device != device:
            self._rope = rope_table(self.config, self.config.max_positions, device)
        return self._rope

    def forward(self, x: Tensor, positions: Tensor, kv: KV | None = None) -> Tensor:
        """x (B, T, D) at positions (B|1, T). Without `kv`: plain causal attention, the reference."""
        rope = self.rope(x.device)[positions]
        for i, block in enumerate(self.layers):
            x = block(x, rope, i, kv)
        return self.norm(x)
