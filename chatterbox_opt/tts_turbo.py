"""Chatterbox Turbo and Nano: a GPT-2 backbone, no guidance, a two-step decoder."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .audio.loudness import normalize_loudness
from .base import MAX_CHARS, Speaker
from .calls import GenerateOptions
from .config import S3_RATE
from .options import SamplingOptions
from .parts.names import S3_SR, S3GEN_SIL, S3GEN_SR
from .pipeline import Job
from .scores import Take
from .streaming import SpeechStream
from .switches import fetch_decoder, ready
from .text.normalize import punc_norm as any_punc_norm
from .voice import AnyVoice, Conditionals, T3Cond
from .weights import hub
from .weights.files import REPOS

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .keywords import LoadKeywords, ModelKeywords, StreamKeywords, SubmitKeywords

__all__ = [
    "REPO_ID", "S3GEN_SIL", "S3GEN_SR", "S3_SR", "ChatterboxTurboTTS", "Conditionals", "OptimizedChatterboxTurboTTS",
    "T3Cond", "punc_norm",
]
REPO_ID = REPOS["turbo"]
punc_norm = partial(any_punc_norm, family="turbo")
logger = logging.getLogger(__name__)


class OptimizedChatterboxTurboTTS(Speaker):
    family = "turbo"
    defaults = SamplingOptions(min_p=0.0, top_p=0.95, top_k=1000, cfg_weight=0.0, max_new_tokens=1001)
    ENC_COND_LEN = 15 * S3_RATE

    def __init__(
        self, t3: Any, s3gen: Any, ve: Any, tokenizer: Any, device: Any, conds: Conditionals | None = None,
        model_label: str = "Turbo", **options: Unpack[ModelKeywords],
    ) -> None:
        super().__init__(t3, s3gen, ve, tokenizer, device, conds, **options)
        self.model_label = model_label
        self._warned: set[str] = set()  # arguments that were warned about

    @classmethod
    def from_pretrained(
        cls,
        device: str | torch.device,
        nano: bool = False,
        *,
        repo_id: str | None = None,
        revision: str | None = None,
        **options: Unpack[LoadKeywords],
    ) -> Self:
        family = "nano" if nano else "turbo"
        device, keywords = ready(device, family, options), fetch_decoder(family, options)
        folder = hub.download(family, repo_id=repo_id, revision=revision)
        return cls.from_local(folder, device, nano, **keywords)

    @classmethod
    def from_local(
        cls, ckpt_dir: str | Path, device: str | torch.device, nano: bool = False, *, t3_file: str | None = None,
        **options: Unpack[LoadKeywords],
    ) -> Self:
        family = "nano" if nano else "turbo"
        return cls._load(ckpt_dir, device, family, t3_file, model_label=family.capitalize(), **options)

    @classmethod
    def from_random(
        cls, device: Any = "cpu", size: str = "tiny", seed: int = 0, nano: Any = False, **options: Unpack[LoadKeywords]
    ) -> Self:
        family = "nano" if nano else "turbo"
        keywords: dict[str, Any] = {"model_label": family.capitalize(), **options}
        return super().from_random(device, size, seed, family, **keywords)

    def norm_loudness(self, wav: Any, sr: int, target_lufs: float = -27) -> Any:
        return normalize_loudness(wav, sr, target_lufs)

    def prepare_voice(  # type: ignore[override]  # upstream has its norm_loudness third
        self, audio: Any, exaggeration: float | None = None, norm_loudness: bool = True, *,
        sample_rate: int | None = None,
    ) -> Conditionals:
        return super().prepare_voice(audio, exaggeration, sample_rate=sample_rate, norm_loudness=norm_loudness)

    def prepare_conditionals(self, wav_fpath: Any, exaggeration: float = 0.5, norm_loudness: bool = True) -> None:
        self.conds = self.prepare_voice(wav_fpath, exaggeration, norm_loudness)

    def generate(
        self,
        text: str,
        repetition_penalty: float = 1.2,
        min_p: float = 0.00,
        top_p: float = 0.95,
        audio_prompt_path: str | Path | None = None,
        exaggeration: float = 0.0,
        cfg_weight: float = 0.0,
        temperature: float = 0.8,
        top_k: int = 1000,
        norm_loudness: bool = True,
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
        """Returns (1, N) float32 on the CPU at `self.sr` Hz. `cfg_weight`, `exaggeration` and `min_p` are ignored, with
        a warning if they are set."""
        voice = self._voice_or_recording(voice, audio_prompt_path, exaggeration, norm_loudness=norm_loudness)
        job = self._job(
            text, voice, exaggeration, seed, repetition_penalty=repetition_penalty, min_p=min_p, top_p=top_p,
            cfg_weight=cfg_weight, temperature=temperature, top_k=top_k, max_new_tokens=max_new_tokens,
            markup=markup, breath=breath, loudness=loudness,
            spoken=spoken, pronounce=pronounce,
        )
        options = GenerateOptions(
            n_cfm_timesteps=n_cfm_timesteps, max_chars=max_chars, verbose=verbose, cancel=cancel, progress=progress,
            takes=takes, score=score, retries=retries,
        )
        return self._one(job, options)

    def generate_stream(
        self, text: str, *, audio_prompt_path: str | Path | None = None, voice: AnyVoice | None = None,
        norm_loudness: bool = True, **how: Unpack[StreamKeywords],
    ) -> SpeechStream:
        voice = self._voice_or_recording(voice, audio_prompt_path, 0.0, norm_loudness=norm_loudness)
        return super().generate_stream(text, voice=voice, **how)

    def submit(
        self, text: str, *, audio_prompt_path: str | Path | None = None, voice: AnyVoice | None = None,
        norm_loudness: bool = True, **how: Unpack[SubmitKeywords],
    ) -> SpeechStream:
        voice = self._voice_or_recording(voice, audio_prompt_path, 0.0, norm_loudness=norm_loudness)
        return super().submit(text, voice=voice, **how)

    def _job(
        self, text: str, voice: Any, exaggeration: float | None, seed: int | None, language: str | None = None,
        *args: Any, **how: Any,
    ) -> Job:
        job = super()._job(text, voice, exaggeration, seed, language, *args, **how)
        ignored = [n for n in ("cfg_weight", "min_p") if getattr(job.sampling, n)]
        ignored += ["exaggeration"] * bool(exaggeration)
        if not ignored:
            return job
        if new := [n for n in ignored if n not in self._warned]:  # a batch of a thousand texts needs no thousand lines
            logger.warning("%s: not supported by %s and ignored", ", ".join(new), self.model_label)
            self._warned.update(new)
        return dataclasses.replace(job, sampling=dataclasses.replace(job.sampling, cfg_weight=0.0, min_p=0.0))


ChatterboxTurboTTS = OptimizedChatterboxTurboTTS
