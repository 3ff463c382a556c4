"""The keys and values of a voice's prompt, computed once per voice: they come first, so no text changes them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models.layers import T3_REFERENCE, T3Operations
from ..models.t3 import T3
from .cache import attend

SIZE = 32  # voices kept; 34 positions of Llama take 8 MB in float32, 376 of Turbo 74 MB


@dataclass(frozen=True, eq=False)
class Prefix:
    k: Tensor  # (layers, heads, P, head_dim)
    v: Tensor
    owners: tuple[Any, ...] = ()  # the tensors whose id() is the key, kept alive so that no other has it

    @property
    def length(self) -> int:
        return self.k.shape[2]


def _identity(tensor: Tensor) -> tuple[int, int]:
    """Changes when a tensor is written into, as far as torch counts that."""
    return id(tensor), 0 if tensor.is_inference() else tensor._version


class _Collect:
    """T3's `kv` argument: collects keys and values and attends to just these."""

    def __init__(self) -> None:
        self.k: list[Tensor] = []
        self.v: list[Tensor] = []

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.k.append(k[0])
        self.v.append(v[0])
        return attend(q, k, v, causal=True)


class PrefixCache:
    def __init__(self, t3: T3, keep: bool, operations: T3Operations = T3_REFERENCE) -> None:
        self.t3, self.keep, self.operations = t3, keep, operations
        self._known: OrderedDict[tuple, Prefix] = OrderedDict()
        # Turbo's 376 positions take ten times the memory of Llama's 34
        self._size = SIZE // 4 if t3.config.is_gpt else SIZE

    def get(self, cond: Any) -> Prefix:
        emotion = None if self.t3.config.is_gpt else cond.emotion_adv
        feeling = None if emotion is None else float(emotion.view(-1)[0])
        key = (*_identity(cond.speaker_emb), *_identity(cond.cond_prompt_speech_tokens), feeling)
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        prefix = self._compute(cond, emotion)
        if self.keep:
            self._known[key] = prefix
            if len(self._known) > self._size:
                self._known.popitem(last=False)
        return prefix

    def _compute(self, cond: Any, emotion: Tensor | None) -> Prefix:
        device = self.t3.speech_emb.weight.device
        prompt = cond.cond_prompt_speech_tokens.to(device).long().view(1, -1)
        emotion = None if emotion is None else emotion.to(device)
        x = self.t3.voice_prefix(cond.speaker_emb.to(device).view(1, -1), prompt, emotion)
        kv = _Collect()
        self.t3(x, torch.arange(x.shape[1], device=device)[None], kv, self.operations)
        return Prefix(torch.stack(kv.k), torch.stack(kv.v), (cond.speaker_emb, cond.cond_prompt_speech_tokens))
