"""T3: one causal transformer over a voice, text tokens and speech tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import START_SPEECH, T3Config
from .gpt2 import Gpt2
from .layers import T3_REFERENCE, T3Operations
from .llama import KV, Llama
from .t3_cond import CondEncoder


class LearnedPositions(nn.Module):
    def __init__(self, positions: int, dim: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(positions, dim)

    def forward(self, positions: Tensor) -> Tensor:
        return self.emb(positions)


class T3(nn.Module):
    def __init__(self, config: T3Config) -> None:
        super().__init__()
        self.config = config
        self.cond_enc = CondEncoder(config)
        self.tfmr = Gpt2(config) if config.is_gpt else Llama(config)
        self.text_emb = nn.Embedding(config.text_vocab, config.dim)
        self.speech_emb = nn.Embedding(config.speech_vocab, config.dim)
        # GPT-2 counts positions itself, over the whole sequence; Llama's two parts each start at 0.
        self.text_pos_emb = None if config.is_gpt else LearnedPositions(config.text_positions, config.dim)
        self.speech_pos_emb = None if config.is_gpt else LearnedPositions(config.speech_positions, config.dim)
        self.speech_head = nn.Linear(config.dim, config.speech_vocab, bias=config.is_gpt)

    def voice_prefix(self, speaker: Tensor, prompt_tokens: Tensor, emotion: Tensor | None) -> Tensor:
        """speaker (B, 256), prompt tokens (B, n), emotion (B, 1, 1) -> (B, prefix, D)."""
        prompt = self.speech_emb(prompt_tokens)
        if self.speech_pos_emb is not None:
            prompt = prompt + self.speech_pos_emb(torch.arange(prompt.shape[1], device=prompt.device))
        dtype = prompt.dtype
        return self.cond_enc(speaker.to(dtype), prompt, None if emotion is None else emotion.to(dtype))

    def text_part(self, text: Tensor, unconditional: Tensor | None = None) -> Tensor:
        """Text ids (B, T) -> embeddings of text and start of speech, (B, T + 2 | 1, D). Rows where `unconditional` (B,)
        is True lose their text but keep its positions. Llama was trained with the start token twice."""
        x = self.text_emb(text)
        start = self.speech_emb.weight[START_SPEECH].expand(len(text), 1, -1)
        if self.text_pos_emb is None:
            return torch.cat([x, start], 1)
        if unconditional is not None:
            x = x.masked_fill(unconditional[:, None, None], 0)
        x = x + self.text_pos_emb(torch.arange(text.shape[1], device=text.device))
        start = start + self.speech_pos_emb.emb.weight[0]
        return torch.cat([x, start, start], 1)

    def embed_speech(self, tokens: Tensor, steps: Tensor) -> Tensor:
        """Tokens (N,) drawn at steps (N,), counted from 0 -> the next input (N, D)."""
        x = self.speech_emb(tokens)
        return x if self.speech_pos_emb is None else x + self.speech_pos_emb(steps + 1)

    def forward(
        self, x: Tensor, positions: Tensor, kv: KV | None = None, ops: T3Operations = T3_REFERENCE
    ) -> Tensor:
        """x (B, T, D) at positions (B|1, T) -> hidden states (B, T, D). `kv` remembers and attends (llama.KV)."""
        return self.tfmr(x, positions, kv, ops)

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, D) -> (N, vocabulary) in float32."""
        return self.speech_head(hidden).float()
