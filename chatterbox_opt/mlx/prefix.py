"""The keys and values of a voice's prefix, computed by MLX once per voice."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from torch import Tensor

from ..engine.prefix import Prefix, PrefixCache
from .arrays import to_mlx
from .cache import Prefill


class Prefixes(PrefixCache):
    def _compute(self, cond: Any, emotion: Tensor | None) -> Prefix:
        t3, owners = self.t3, (cond.speaker_emb, cond.cond_prompt_speech_tokens)
        speaker, prompt = to_mlx(owners[0]).reshape(1, -1), to_mlx(owners[1].long()).reshape(1, -1)
        x = t3.voice_prefix(speaker, prompt, None if emotion is None else float(emotion.view(-1)[0]))
        kv = Prefill(None, t3.config.head_dim**-0.5)
        t3(x, mx.array([0]), kv)
        k, v = (mx.stack([rows[0] for rows in layers]) for layers in (kv.k, kv.v))
        mx.eval(k, v)
        return Prefix(k, v, owners)
