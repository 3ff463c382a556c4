"""Transcribes speech with Whisper and counts word errors. Extra `hearing`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from . import whisper
from .config import S3_RATE

_DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def words(text: str) -> list[str]:
    """Returns the words in lower case, without punctuation and with small numbers spelled, for comparison."""
    text = re.sub(r"\b\d+\b", lambda m: _DIGITS[int(m[0])] if int(m[0]) < len(_DIGITS) else m[0], text.lower())
    return re.findall(r"[^\W_]+", re.sub(r"['’]", "", text))


def word_errors(said: str, heard: str) -> tuple[int, int]:
    """Returns (fewest words to change, drop or insert, number of words said)."""
    a, b = words(said), words(heard)
    return edits(a, b), len(a)


def edits(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Returns the edit distance: the fewest items of `a` to change, drop or insert to make it `b`."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


class Listener:
    """Whisper tiny.en from a wheel, or another faster-whisper model by name or folder. Runs on the CPU."""

    def __init__(self, model: str | None = None, language: str = "en") -> None:
        self.model, self.name, self.language = whisper.load(model), model or "tiny.en", language

    def __repr__(self) -> str:
        return f"Listener({self.name!r}, {self.language!r})"

    missing = staticmethod(whisper.missing)

    def hear(self, wav: Any, rate: int) -> str:
        """Returns the transcript of (N,) samples."""
        import torch  # not needed for counting words

        from .audio.io import resample
        from .computing import computing

        with computing(torch.device("cpu")):
            wav = resample(torch.as_tensor(wav).float().reshape(-1).cpu(), rate, S3_RATE)
        segments, _ = self.model.transcribe(
            wav.numpy(), language=self.language, beam_size=5, condition_on_previous_text=False
        )
        return " ".join(s.text.strip() for s in segments)
