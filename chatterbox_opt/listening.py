"""Transcribes speech with Whisper and counts word errors. Extra `hearing`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from . import whisper
from .config import S3_RATE
from .text.split import WIDE_CHAR

_DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
# In a text of letters, digits, combining marks and blanks, where [^\w\s] is a mark. Scripts of wide characters have no
# blanks between words: each character is one.
_WORD = re.compile(rf"{WIDE_CHAR.pattern}[^\w\s]*|(?:(?!{WIDE_CHAR.pattern})\w[^\w\s]*)+")
_DROPPED = re.compile("['’\u200c\u200d]")  # the last two change how letters are joined, and not what is said


def words(text: str) -> list[str]:
    """Returns the words in lower case, without punctuation and with small numbers spelled, for comparison. A Han, kana
    or Hangul character is a word."""
    text = re.sub(r"\b\d+\b", lambda m: _DIGITS[int(m[0])] if int(m[0]) < len(_DIGITS) else m[0], text.lower())
    text = unicodedata.normalize("NFC", _DROPPED.sub("", text))
    return _WORD.findall("".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in text))


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
