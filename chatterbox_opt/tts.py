"""English Chatterbox: upstream's call, faster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .base import MAX_CHARS, Speaker
from .calls import GenerateOptions
from .checks import NEUTRAL
from .parts.names import S3_SR, S3GEN_SR, drop_invalid_tokens
from .scores import Take
from .switches import fetch_decoder, ready
from .text.normalize import punc_norm
from .voice import AnyVoice, Conditionals, T3Cond
from .weights import hub
from .weights.files import MINI, REPOS

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .keywords import LoadKeywords

__all__ = [
    "REPO_ID", "S3GEN_SR", "S3_SR", "ChatterboxTTS", "Conditionals", "OptimizedChatterboxTTS", "T3Cond",
    "drop_invalid_tokens", "punc_norm",
]
REPO_ID = REPOS["tts"]


class OptimizedChatterboxTTS(Speaker):
    family = "tts"

    @classmethod
    def from_pretrained(
        cls, device: str | torch.device, *, repo_id: str | None = None, revision: str | None = None,
        **options: Unpack[LoadKeywords],
    ) -> Self:
        """`decoder="meanflow"` fetches Turbo's decoder of two steps beside the model."""
        device, keywords = ready(device, "tts", options), fetch_decoder("tts", options)
        return cls._load(hub.download("tts", repo_id=repo_id, revision=revision), device, "tts", **keywords)

    @classmethod
    def from_local(
        cls,
        ckpt_dir: str | Path,
        device: str | torch.device,
        *,
        t3_file: str | None = None,
        **options: Unpack[LoadKeywords],
    ) -> Self:
        """`t3_file` names a fine-tuned T3, `decoder` another decoder ("meanflow" is Turbo's of two steps): files inside
        the folder, or anywhere else."""
        return cls._load(ckpt_dir, device, "tts", t3_file, **options)

    @classmethod
    def from_mini(cls, device: str | torch.device = "cpu", **options: Unpack[LoadKeywords]) -> Self:
        """The small model inside this package, see assets/mini: one English voice, no download, no cloning."""
        return cls._load(MINI, device, "tts", **options)

    def generate(
        self,
        text: str,
        repetition_penalty: float = 1.2,
        min_p: float = 0.05,
        top_p: float = 1.0,
        audio_prompt_path: str | Path | None = None,
        exaggeration: float = NEUTRAL,
        cfg_weight: float = 0.5,
        temperature: float = 0.8,
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
        """Returns (1, N) float32 on the CPU at `self.sr` Hz. `max_chars=None` does not split a long text, as upstream.
        A `voice` keeps the exaggeration it was prepared with unless the call gives one."""
        voice = self._voice_or_recording(voice, audio_prompt_path, exaggeration)
        job = self._job(
            text, voice, exaggeration, seed, repetition_penalty=repetition_penalty, min_p=min_p, top_p=top_p,
            cfg_weight=cfg_weight, temperature=temperature, max_new_tokens=max_new_tokens,
            markup=markup, breath=breath, loudness=loudness,
            spoken=spoken, pronounce=pronounce,
        )
        options = GenerateOptions(
            n_cfm_timesteps=n_cfm_timesteps, max_chars=max_chars, verbose=verbose, cancel=cancel, progress=progress,
            takes=takes, score=score, retries=retries,
        )
        return self._one(job, options)


ChatterboxTTS = OptimizedChatterboxTTS
