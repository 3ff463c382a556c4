"""Multilingual Chatterbox: 23 languages, upstream's call as its repository's head has it, faster."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .base import MAX_CHARS, Speaker
from .calls import GenerateOptions
from .checks import NEUTRAL
from .parts.names import S3_SR, S3GEN_SR, drop_invalid_tokens
from .pipeline import Job
from .scores import Take
from .switches import fetch_decoder, ready
from .text.languages import SUPPORTED_LANGUAGES
from .text.normalize import punc_norm as any_punc_norm
from .voice import AnyVoice, Conditionals, T3Cond
from .weights import hub
from .weights.files import REPOS, multilingual_t3

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .keywords import BatchKeywords, LoadKeywords

__all__ = [
    "REPO_ID", "S3GEN_SR", "S3_SR", "SUPPORTED_LANGUAGES", "ChatterboxMultilingualTTS", "Conditionals",
    "OptimizedChatterboxMultilingualTTS", "T3Cond", "drop_invalid_tokens", "punc_norm",
]
REPO_ID = REPOS["mtl"]
punc_norm = partial(any_punc_norm, family="mtl")


class OptimizedChatterboxMultilingualTTS(Speaker):
    family = "mtl"

    @classmethod
    def get_supported_languages(cls) -> dict[str, str]:
        return SUPPORTED_LANGUAGES.copy()

    @classmethod
    def from_pretrained(
        cls,
        device: str | torch.device,
        t3_model: str | None = None,
        *,
        repo_id: str | None = None,
        revision: str | None = None,
        **options: Unpack[LoadKeywords],
    ) -> Self:
        """`t3_model` is "v2" (the default), "v3" or a file name; `repo_id` also takes a single-language pack."""
        device, keywords = ready(device, "mtl", options), fetch_decoder("mtl", options)
        folder = hub.download("mtl", t3_model=t3_model, repo_id=repo_id, revision=revision)
        return cls.from_local(folder, device, t3_model, **keywords)

    @classmethod
    def from_local(
        cls, ckpt_dir: str | Path, device: str | torch.device, t3_model: str | None = None,
        **options: Unpack[LoadKeywords],
    ) -> Self:
        return cls._load(ckpt_dir, device, "mtl", multilingual_t3(t3_model), **options)

    def generate(
        self,
        text: str,
        language_id: str | None,
        audio_prompt_path: str | Path | None = None,
        exaggeration: float = NEUTRAL,
        cfg_weight: float = 0.5,
        temperature: float = 0.8,
        repetition_penalty: float = 1.2,
        min_p: float = 0.05,
        top_p: float = 1.0,
        *,
        voice: AnyVoice | None = None,
        seed: int | None = None,
        max_new_tokens: int | None = None,
        n_cfm_timesteps: int | None = None,
        max_chars: int | None = MAX_CHARS,
        verbose: bool = False,
        cancel: Any = None,
        progress: Callable[[int, int], None] | None = None,
        markup: Any = False,
        breath: bool = False,
        loudness: float | None = None,
        spoken: bool | str = False,
        pronounce: Any = None,
        takes: int = 1,
        score: Callable[[Take], float] | None = None,
        retries: int = 0,
    ) -> Tensor:
        """Returns (1, N) float32 on the CPU at `self.sr` Hz. `language_id` None gives the text no language tag. A
        `voice` keeps the exaggeration it was prepared with unless the call gives one."""
        voice = self._voice_or_recording(voice, audio_prompt_path, exaggeration)
        job = self._job(
            text, voice, exaggeration, seed, language_id, repetition_penalty=repetition_penalty, min_p=min_p,
            top_p=top_p, cfg_weight=cfg_weight, temperature=temperature, max_new_tokens=max_new_tokens,
            markup=markup, breath=breath, loudness=loudness,
            spoken=spoken, pronounce=pronounce,
        )
        options = GenerateOptions(
            n_cfm_timesteps=n_cfm_timesteps, max_chars=max_chars, verbose=verbose, cancel=cancel, progress=progress,
            takes=takes, score=score, retries=retries,
        )
        return self._one(job, options)

    def generate_batch(
        self, texts: Any, language_ids: Any = None, *, voices: Any = None, seeds: Any = None,
        **keywords: Unpack[BatchKeywords],
    ) -> list[Tensor]:
        return super().generate_batch(texts, voices=voices, seeds=seeds, language_ids=language_ids, **keywords)

    def _job(
        self, text: str, voice: Any, exaggeration: float | None, seed: int | None, language: str | None = None,
        *args: Any, **how: Any,
    ) -> Job:
        if language and (not isinstance(language, str) or language.lower() not in SUPPORTED_LANGUAGES):
            raise ValueError(
                f"Unsupported language_id {language!r}. Supported languages: {', '.join(SUPPORTED_LANGUAGES)}"
            )
        return super()._job(text, voice, exaggeration, seed, language.lower() if language else None, *args, **how)


ChatterboxMultilingualTTS = OptimizedChatterboxMultilingualTTS
