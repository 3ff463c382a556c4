"""Results of a call: the sound of a text, and which of its characters are where in the sound."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .captions import Record, written
from .config import S3GEN_RATE
from .engine.request import Utterance
from .takes import Choice


class Word(NamedTuple):
    text: str
    start: float  # s
    end: float


# (samples (N,), rate in Hz, text) -> (word, start, end) per word, in seconds from the first sample
Align = Callable[[np.ndarray, int, str], Iterable[tuple[str, float, float]]]


@dataclass(frozen=True, eq=False)  # tensors cannot be compared so
class Piece:
    """A part of a text spoken as one utterance: of a long text, some sentences."""

    text: str
    chars: tuple[int, int]  # first, past the last, in the given text; the pieces cover the text
    samples: tuple[int, int]  # first, past the last, in the sound; equal if the piece has no sound
    tokens: Tensor  # (n,) speech tokens, without control ids
    stop: str  # why it ended: "eos" | "limit" | "guard"; "given" if the caller gave the tokens
    words: tuple[Word, ...] = ()  # if align= was given; seconds from the start of the whole sound

    def record(self) -> Record:
        """Returns the piece for captions and JSON, with the number of tokens instead of the tokens."""
        found: Record = {
            "text": self.text, "start": self.samples[0] / S3GEN_RATE, "end": self.samples[1] / S3GEN_RATE,
            "chars": list(self.chars), "samples": list(self.samples), "tokens": len(self.tokens), "stop": self.stop,
        }
        return found | ({"words": [word._asdict() for word in self.words]} if self.words else {})

    def aligned(self, wave: np.ndarray, align: Align) -> Piece:
        return dataclasses.replace(self, words=tuple(aligned(self.text, self.samples, wave, align)))


def aligned(text: str, samples: Sequence[int], wave: np.ndarray, align: Align) -> list[Word]:
    """Returns the words that `align` finds in wave[samples], their times put in order and within that part."""
    first, end = samples
    if first == end or not text.strip():
        return []
    offset, latest, words = first / S3GEN_RATE, first / S3GEN_RATE, []
    for word, start, stop in align(wave[first:end], S3GEN_RATE, text):
        if not (math.isfinite(start) and math.isfinite(stop)):
            raise ValueError(f"align: {word!r} is at {start!r} to {stop!r}; seconds are needed")
        start = min(max(offset + float(start), latest), end / S3GEN_RATE)
        latest = min(max(offset + float(stop), start), end / S3GEN_RATE)
        words.append(Word(str(word).strip(), start, latest))
    return words


@dataclass(eq=False)
class Speech:
    """The result of a job."""

    wav: Tensor  # (1, N) float32 on the CPU
    tokens: list[Tensor]  # one (n,) LongTensor per piece
    stops: list[str]  # why each piece ended: "eos" | "limit" | "guard"; "given" if the caller gave the tokens
    seconds: dict[str, float] = field(default_factory=dict)  # per stage, of the whole batch
    pieces: list[Piece] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)  # one per piece if takes= or retries= was given

    def align(self, align: Align) -> Speech:
        """Adds word times to the pieces and returns this object. `align(samples, rate, text)` is called per piece."""
        wave = self.wav[0].numpy()
        self.pieces = [piece.aligned(wave, align) for piece in self.pieces]
        return self

    def records(self) -> list[Record]:
        return [piece.record() for piece in self.pieces]

    def captions(self, kind: str) -> str:
        """Returns the text of a caption file: "srt", "vtt" or "json"."""
        return written(kind, self.records(), sample_rate=S3GEN_RATE, seconds=self.wav.shape[-1] / S3GEN_RATE)

    def to_srt(self) -> str:
        return self.captions(".srt")

    def to_vtt(self) -> str:
        return self.captions(".vtt")

    def to_json(self) -> str:
        return self.captions(".json")


def audible(utterance: Utterance) -> Tensor:
    return torch.tensor(utterance.audible(), dtype=torch.long, device="cpu")


def pieces_of(utterances: Sequence[Utterance], places: Sequence[tuple[int, int]]) -> list[Piece]:
    return [Piece(u.text, u.chars, at, audible(u), str(u.stopped)) for u, at in zip(utterances, places)]
