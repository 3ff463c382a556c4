"""models.t3 in MLX: the same names, shapes and order of operations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import mlx.core as mx
import torch
from torch import Tensor, nn

from ..config import START_SPEECH, T3Config
from ..models.layers import rope_frequencies
from ..models.t3 import T3 as TorchT3
from .arrays import dtype_of, to_mlx
from .weights import Weights

# (layer, q, k, v) of the new positions, each (B, H, T, Dh) -> (B, H, T, Dh): stores k and v, and attends to all that
# are stored.
KV = Callable[[int, mx.array, mx.array, mx.array], mx.array]
LAYER_NORM_EPS = nn.LayerNorm(1).eps  # outside the backbone


class T3:
    def __init__(
        self, config: T3Config, named: Iterable[tuple[str, Tensor]], dtype: str = "float32", quantize: str | None = None
    ) -> None:
        """`named`: all tensors of a models.t3.T3."""
        w = Weights(lambda: TorchT3(config), named, dtype_of(dtype), quantize)
        self.config, self.dtype, self.named_tensors = config, w.dtype, w.named_tensors
        self.text_emb, self.speech_emb = w["text_emb.weight"], w["speech_emb.weight"]
        self.text_pos = None if config.is_gpt else w["text_pos_emb.emb.weight"]
        self.speech_pos = None if config.is_gpt else w["speech_pos_emb.emb.weight"]
        self.speech_head = w.linear("speech_head")
        self.cond_enc = CondEncoder(config, w)
        self.tfmr = (Gpt2 if config.is_gpt else Llama)(config, w)

    def voice_prefix(self, speaker: mx.array, prompt_tokens: mx.array, emotion: float | None) -> mx.array:
        """speaker (1, 256), prompt tokens (1, n) -> (1, prefix, D)."""
        prompt = self.speech_emb[prompt_tokens]
        if self.speech_pos is not None:
            prompt = prompt + self.speech_pos[: prompt.shape[1]]
        return self.cond_enc(speaker.astype(self.dtype), prompt, emotion)

    def text_part(self, text: mx.array, rows: int) -> mx.array:
        """(T,) ids and the start of speech -> (rows, T + 2 | 1, D). The second of Llama's two rows has positions but
        no text."""
        x, start = self.text_emb[text], self.speech_emb[START_SPEECH][None]
        if self.text_pos is None or self.speech_pos is None:
            return mx.stack([mx.concatenate([x, start])] * rows)
        start, positions = start + self.speech_pos[0], self.text_pos[: len(text)]
        texts = (x, mx.zeros_like(x))[:rows]
        return mx.stack([mx.concatenate([text + positions, start, start]) for text in texts])

    def embed_speech(self, tokens: mx.array, steps: mx.array) -> mx.array:
        """(N,) tokens drawn at (N,) steps, the first of them step 0 -> (N, D), the next input."""
        x = self.speech_emb[tokens]
        if self.speech_pos is None:
            return x
        # Tokens that a block draws past the limit may have no position in a small table; they are dropped later.
        return x + self.speech_pos[mx.minimum(steps + 1, len(self.speech_pos) - 1)]

    def __call__(self, x: mx.array, start: mx.array, kv: KV) -> mx.array:
        """x (B, T, D); row i begins at position `start[i]`, (B,)."""
        return self.tfmr(x, start, kv)

    def logits(self, hidden: mx.array) -> mx.array:
        return self.speech_head(hidden).astype(mx.float32)


# ---- backbones -----------------------------------------------------------------------------------


class Llama:
    def __init__(self, config: T3Config, w: Weights) -> None:
        self.heads, self.eps = config.heads, config.norm_eps
        self.layers = [
            (w[f"{at}.input_layernorm.weight"], w.linear(f"{at}.self_attn.qkv_proj"),
             w.linear(f"{at}.self_attn.o_proj"), w[f"{at}.post_attention_layernorm.weight"],
             w.linear(f"{at}.mlp.gate_up_proj"), w.linear(f"{at}.mlp.down_proj"))
            for at in (f"tfmr.layers.{i}" for i in range(config.layers))
        ]
        self.norm = w["tfmr.norm.weight"]
        self.head_dim, self.wavelengths = config.head_dim, to_mlx(1 / rope_frequencies(config))
        mx.eval(self.wavelengths)

    def __call__(self, x: mx.array, start: mx.array, kv: KV) -> mx.array:
        for i, (norm1, qkv_proj, o_proj, norm2, gate_up_proj, down_proj) in enumerate(self.layers):
            qkv = heads_of(qkv_proj(mx.fast.rms_norm(x, norm1, self.eps)), 3 * self.heads)
            q, k = mx.split(self.rotate(qkv[:, : 2 * self.heads], start), 2, axis=1)
            x = x + o_proj(flat(kv(i, q, k, qkv[:, 2 * self.heads :])))
            gate, up = mx.split(gate_up_proj(mx.fast.rms_norm(x, norm2, self.eps)), 2, axis=-1)
            x = x + down_proj(gate * mx.sigmoid(gate) * up)
        return mx.fast.rms_norm(x, self.norm, self.eps)

    def rotate(self, x: mx.array, start: mx.array) -> mx.array:
        """The loader has put the two channels of a pair, which rotate together, next to each other."""
        return mx.fast.rope(
            x, self.head_dim, traditional=True, base=None, scale=1.0, offset=start, freqs=self.wavelengths
        )


class Gpt2:
    def __init__(self, config: T3Config, w: Weights) -> None:
        self.heads, self.wpe = config.heads, w["tfmr.wpe.weight"]

        def norm(name: str) -> Callable[[mx.array], mx.array]:
            return partial(mx.fast.layer_norm, weight=w[f"{name}.weight"], bias=w[f"{name}.bias"], eps=config.norm_eps)

        self.layers = [
            (norm(f"{at}.ln_1"), w.linear(f"{at}.attn.c_attn"), w.linear(f"{at}.attn.c_proj"), norm(f"{at}.ln_2"),
             w.linear(f"{at}.mlp.c_fc"), w.linear(f"{at}.mlp.c_proj"))
            for at in (f"tfmr.h.{i}" for i in range(config.layers))
        ]
        self.norm = norm("tfmr.ln_f")

    def __call__(self, x: mx.array, start: mx.array, kv: KV) -> mx.array:
        x = x + self.wpe[start[:, None] + mx.arange(x.shape[1])]
        for i, (norm1, attn_in, attn_out, norm2, mlp_in, mlp_out) in enumerate(self.layers):
            q, k, v = mx.split(heads_of(attn_in(norm1(x)), 3 * self.heads), 3, axis=1)
            x = x + attn_out(flat(kv(i, q, k, v)))
            x = x + mlp_out(gelu(mlp_in(norm2(x))))
        return self.norm(x)


# ---- voice prompt --------------------------------------------------------------------------------


class CondEncoder:
    def __init__(self, config: T3Config, w: Weights) -> None:
        self.spkr_enc = w.linear("cond_enc.spkr_enc")
        self.perceiver = None if config.is_gpt else Perceiver(config, w)
        self.emotion = None if config.is_gpt else w.linear("cond_enc.emotion_adv_fc")

    def __call__(self, speaker: mx.array, prompt: mx.array, emotion: float | None) -> mx.array:
        parts = [self.spkr_enc(speaker)[:, None], prompt if self.perceiver is None else self.perceiver(prompt)]
        if self.emotion is not None:
            parts.append(self.emotion(mx.array([[[emotion]]], dtype=prompt.dtype)))
        return mx.concatenate(parts, axis=1)


class Perceiver:
    """One attention block, applied to the prompt and then to its own result."""

    def __init__(self, config: T3Config, w: Weights) -> None:
        at = "cond_enc.perceiver"
        self.heads, self.scale = config.perceiver_heads, (config.dim // config.perceiver_heads) ** -0.5
        self.query = w[f"{at}.pre_attention_query"]
        weight, bias = w[f"{at}.attn.norm.weight"], w[f"{at}.attn.norm.bias"]
        self.norm = partial(mx.fast.layer_norm, weight=weight, bias=bias, eps=LAYER_NORM_EPS)
        self.q, self.k, self.v, self.out = (w.linear(f"{at}.attn.{n}") for n in ("to_q", "to_k", "to_v", "proj_out"))

    def __call__(self, prompt: mx.array) -> mx.array:
        x = self._attend(self.query, prompt)
        return self._attend(x, x)

    def _attend(self, x: mx.array, memory: mx.array) -> mx.array:
        normed, memory = self.norm(x), self.norm(memory)
        q, k, v = (heads_of(y, self.heads) for y in (self.q(normed), self.k(memory), self.v(memory)))
        return x + self.out(flat(mx.fast.scaled_dot_product_attention(q, k, v, scale=self.scale)))


# ---- operations ----------------------------------------------------------------------------------


def heads_of(x: mx.array, heads: int) -> mx.array:
    """(B, T, H * Dh) -> (B, H, T, Dh)"""
    return mx.unflatten(x, -1, (heads, -1)).swapaxes(1, 2)


def flat(x: mx.array) -> mx.array:
    """(B, H, T, Dh) -> (B, T, H * Dh)"""
    return mx.flatten(x.swapaxes(1, 2), 2)


def gelu(x: mx.array) -> mx.array:
    return 0.5 * x * (1 + mx.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
