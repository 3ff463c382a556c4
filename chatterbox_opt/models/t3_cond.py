"""T3's conditioning on a voice: the speaker, a resampled prompt, and for Llama the emotion."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import SPEAKER_DIM, T3Config


class CrossAttention(nn.Module):
    """A pre-norm attention block with one norm for queries and memory."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.proj_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """x (B, T, D) attends to memory (B, S, D) -> (B, T, D)."""
        normed, memory = self.norm(x), self.norm(memory)
        q, k, v = self.to_q(normed), self.to_k(memory), self.to_v(memory)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.proj_out(out)


class Perceiver(nn.Module):
    """Resamples any number of prompt positions to a fixed number. One block attends to the prompt first, then to its
    own result."""

    def __init__(self, config: T3Config) -> None:
        super().__init__()
        self.pre_attention_query = nn.Parameter(torch.zeros(1, config.perceiver_queries, config.dim))
        self.attn = CrossAttention(config.dim, config.perceiver_heads)

    def forward(self, prompt: Tensor) -> Tensor:
        x = self.attn(self.pre_attention_query.expand(len(prompt), -1, -1), prompt)
        return self.attn(x, x)


class CondEncoder(nn.Module):
    def __init__(self, config: T3Config) -> None:
        super().__init__()
        self.spkr_enc = nn.Linear(SPEAKER_DIM, config.dim)
        self.perceiver = None if config.is_gpt else Perceiver(config)
        self.emotion_adv_fc = None if config.is_gpt else nn.Linear(1, config.dim, bias=False)

    def forward(self, speaker: Tensor, prompt: Tensor, emotion: Tensor | None) -> Tensor:
        """speaker (B, 256), prompt embeddings (B, n, D), emotion (B, 1, 1) -> (B, prefix, D)."""
        parts = [self.spkr_enc(speaker).unsqueeze(1)]
        parts.append(prompt if self.perceiver is None else self.perceiver(prompt))
        if self.emotion_adv_fc is not None:
            parts.append(self.emotion_adv_fc(emotion.view(-1, 1, 1)))
        return torch.cat(parts, 1)
