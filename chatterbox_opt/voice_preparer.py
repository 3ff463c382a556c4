"""Measures a voice from a recording: the conditioning of T3 and S3Gen, cached by content."""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .audio.io import fingerprint, label, read, resample
from .audio.loudness import normalize_loudness
from .computing import computing
from .config import FRAMES_PER_TOKEN, S3_RATE, S3GEN_RATE, TOKEN_RATE, ModelConfig
from .device_lock import device_lock
from .models.mel import SHORTEST, kaldi_fbank, prompt_mel, s3_mel
from .models.s3_tokenizer import memory, memory_by_taps
from .models.voice_encoder import speaker_embedding
from .voice import Conditionals, T3Cond, as_emotion, detached_copy, fields, with_exaggeration

logger = logging.getLogger(__name__)

PROMPT_SECONDS = 10  # of the recording that S3Gen continues
VOICE_SECONDS = 300  # of it that the voice encoder uses; upstream has no bound, and needs gigabytes for half an hour
SHORTEST_SECONDS = 0.5
TURBO_SECONDS = 5.0  # upstream wants more than this for Turbo
SILENCE = 1e-4  # peak, -80 dB: three steps of a 16-bit file
SETTLE = 1.0  # s of recording read beyond what is needed, so that the resampler's filter has run in
CACHED = 32  # voices kept, about 0.2 MB each
MISSING = object()


def is_saved_voice(audio: Any) -> bool:
    """Whether `audio` is the path of a saved voice."""
    return isinstance(audio, (str, os.PathLike)) and Path(audio).suffix == ".pt"


class ShortPrompt(AssertionError, ValueError):
    """Upstream raises an AssertionError here; new code may catch the ValueError it should have been."""


class VoicePreparer:
    """Makes voices of recordings with one model's encoders. Thread-safe; caches the last `kept` by content."""

    def __init__(
        self,
        config: ModelConfig,
        ve: Any,
        s3gen: Any,
        device: torch.device,
        resampler: str = "auto",
        kept: int = CACHED,
    ) -> None:
        self.config, self.device = config, torch.device(device)
        self.memory = memory_by_taps if self.device.type == "cpu" else memory
        self.exact = resampler == "exact"
        self._kept: OrderedDict[tuple, Any] = OrderedDict()
        self._limit, self._lock = kept, threading.Lock()
        self._encoders = 0  # how often they were replaced: what old ones are measuring is kept under the old number
        self.ve: Any = None
        self.use(ve, s3gen)

    def use(self, ve: Any = None, s3gen: Any = None) -> None:
        """Measures with these encoders from now on; what is None stays. Voices of the same recordings change."""
        if s3gen is not None:
            self.tokenizer, self.speaker_encoder = s3gen.tokenizer, s3gen.speaker_encoder
        if ve is not None and self.device.type == "cuda":
            ve.lstm.flatten_parameters()  # weights loaded one by one are scattered, which cuDNN gathers at every call
        with self._lock:
            self.ve = ve or self.ve
            self._encoders += 1
            self._kept.clear()

    def prepare(
        self,
        audio: Any,
        *,
        exaggeration: float | None = None,
        sample_rate: int | None = None,
        norm_loudness: bool | None = None,
    ) -> Conditionals:
        """Returns the voice of a path, an open file, or samples with their rate; of a saved voice if the path ends in
        .pt. `exaggeration` None is 0.5 for a recording, and the saved value for a saved voice. Only Turbo and Nano
        normalize the loudness."""
        with self.ready():
            if is_saved_voice(audio):
                return with_exaggeration(self._saved(audio).check(self.config, audio), exaggeration)
            loud = self.config.t3.is_gpt and norm_loudness is not False
            key = ("voice", loud, fingerprint(audio, sample_rate))
            voice = self._cached(key, lambda: self._measure(audio, sample_rate, loud))
            return with_exaggeration(voice, exaggeration)

    def prompt(self, audio: Any, *, sample_rate: int | None = None) -> dict[str, Any]:
        """Returns S3Gen's half of a voice, the target of voice conversion, from a recording or a voice."""
        with self.ready():
            if isinstance(audio, Conditionals):
                return dict(audio.check_sound().to(self.device).gen)
            if is_saved_voice(audio):
                return dict(self._saved(audio).check_sound(audio).gen)
            key = ("prompt", fingerprint(audio, sample_rate))
            return dict(self._cached(key, lambda: self._measure_prompt(audio, sample_rate)))

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Inside, this thread uses the device, without the modes of the caller: voices are kept."""
        with device_lock(self.device), computing(self.device):
            yield

    def _saved(self, path: str | os.PathLike) -> Conditionals:
        """Returns the same object while the file is unchanged: T3 caches a voice's prefix by the identity of its
        tensors."""
        key = ("saved", fingerprint(path))
        return self._cached(key, lambda: _finite(Conditionals.load(path).to(self.device), path))

    @torch.inference_mode()
    def speech_tokens(self, wav: Tensor) -> Tensor:
        """(N,) at 16 kHz on the model's device, of any length -> (n,) speech tokens."""
        if len(wav) < SHORTEST:
            raise ValueError(
                f"{len(wav) / S3_RATE:.3f} s of audio is too short; at least {SHORTEST / S3_RATE:.3f} s is needed"
            )
        return detached_copy(self.tokenizer([s3_mel(wav)], self.memory)[0])

    def _cached(self, key: tuple, make: Callable[[], Any]) -> Any:
        with self._lock:
            key = (self._encoders, *key)
            found, written = self._kept.get(key, (MISSING, None))
            if found is not MISSING and written == _written(found):
                self._kept.move_to_end(key)
                return found
        with torch.inference_mode(False):  # what is kept outlives a caller's mode
            made = make()  # outside the lock: another voice need not wait for this one
        with self._lock:
            self._kept[key] = made, _written(made)
            while len(self._kept) > self._limit:
                self._kept.popitem(last=False)
        return made

    def _load(self, audio: Any, sample_rate: int | None, seconds: float) -> Tensor:
        """Returns (N,) at 24 kHz on the device. Raises ValueError for recordings too short or silent."""
        if not self.config.clones:
            raise ValueError(
                f"{label(audio)}: this model speaks in its own voice only; from_pretrained(), or --model english in a "
                "shell, loads one that clones"
            )
        wav, rate = read(audio, sample_rate, seconds=seconds)
        length, peak = len(wav) / rate, float(wav.abs().max())
        if round(length, 3) < SHORTEST_SECONDS:  # half a second at 11,025 Hz is no whole number of samples
            raise ValueError(
                f"{label(audio)}: {length:.3f} s is too short for a voice; "
                f"at least {SHORTEST_SECONDS} s is needed, and 6 to 15 s of clean speech is best"
            )
        if peak < SILENCE:
            raise ValueError(f"{label(audio)}: it is silent (peak {peak:.1e}); give a recording of speech")
        return resample(wav.to(self.device), rate, S3GEN_RATE, self.exact, sharp=True)

    @torch.inference_mode()
    def _measure(self, audio: Any, sample_rate: int | None, loud: bool) -> Conditionals:
        wav = self._load(audio, sample_rate, VOICE_SECONDS + SETTLE)
        if len(wav) > VOICE_SECONDS * S3GEN_RATE:
            wav = wav[: VOICE_SECONDS * S3GEN_RATE]
            logger.warning("%s: only its first %d s are heard", label(audio), VOICE_SECONDS)
        if self.config.t3.is_gpt and len(wav) <= TURBO_SECONDS * S3GEN_RATE:
            raise ShortPrompt(
                f"Audio prompt must be longer than {TURBO_SECONDS:.0f} seconds! "
                f"{label(audio)} has {len(wav) / S3GEN_RATE:.2f} s"
            )
        if loud:
            wav = normalize_loudness(wav, S3GEN_RATE)
        heard = resample(wav, S3GEN_RATE, S3_RATE, self.exact, sharp=True)
        limit = self.config.t3.prompt_tokens
        first = heard[: limit * S3_RATE // TOKEN_RATE]
        gen, tokens = self._gen(wav, first, limit)
        speaker = speaker_embedding(self.ve, heard)
        cond = T3Cond(
            speaker_emb=speaker, cond_prompt_speech_tokens=tokens[None], emotion_adv=as_emotion(0.5, self.device)
        )
        return _finite(Conditionals(T3Cond(**{k: detached_copy(v) for k, v in fields(cond).items()}), gen), audio)

    @torch.inference_mode()
    def _measure_prompt(self, audio: Any, sample_rate: int | None) -> dict[str, Any]:
        return self._gen(self._load(audio, sample_rate, PROMPT_SECONDS + SETTLE))[0]

    def _gen(self, wav: Tensor, first: Tensor | None = None, limit: int = 0) -> tuple[dict[str, Any], Tensor]:
        """(N,) at 24 kHz -> S3Gen's half of a voice, and T3's prompt: up to `limit` tokens of `first`, (n,) at 16 kHz,
        tokenized in the same batch; empty without it."""
        wav = wav[: PROMPT_SECONDS * S3GEN_RATE]
        # Always the windowed sinc, as upstream: this is where it uses torchaudio, whatever it read the file with.
        return self.sound_half(wav, resample(wav, S3GEN_RATE, S3_RATE), first, limit)

    def sound_half(
        self, wav: Tensor, low: Tensor, first: Tensor | None = None, limit: int = 0
    ) -> tuple[dict[str, Any], Tensor]:
        """As _gen(), of a recording (N,) at 24 kHz that is there at 16 kHz too, `low`, and used as a whole."""
        mels, prompt = [s3_mel(low)], prompt_mel(wav)
        if first is not None:
            mels.append(s3_mel(first)[:, : 4 * limit])
        ids = self.tokenizer(mels, self.memory)
        count = min(len(ids[0]), prompt.shape[1] // FRAMES_PER_TOKEN)  # a part of a token at the end has no mel
        gen = {
            "prompt_token": ids[0][None, :count],
            "prompt_token_len": torch.tensor([count], device=self.device),
            "prompt_feat": prompt.t()[None],
            "prompt_feat_len": None,
            "embedding": self.speaker_encoder(kaldi_fbank(low)[None]),
        }
        return {k: detached_copy(v) for k, v in gen.items()}, ids[-1][:limit]


def _written(voice: Conditionals | dict[str, Any]) -> list[int]:
    """Returns how often each tensor was written into: the caller of a kept voice has its tensors, and may."""
    parts = [fields(voice.t3), voice.gen] if isinstance(voice, Conditionals) else [voice]
    return [value._version for part in parts for value in part.values() if torch.is_tensor(value)]


def _finite(voice: Conditionals, audio: Any) -> Conditionals:
    if not (torch.isfinite(voice.t3.speaker_emb).all() and torch.isfinite(voice.gen["embedding"]).all()):
        raise ValueError(f"{label(audio)}: no voice can be measured in it; give a clean recording of speech")
    return voice
