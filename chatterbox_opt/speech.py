"""What became of a text: its sound, and which of its characters are where in that."""

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


# (samples (N,), Hz, what is said) -> its words, with seconds from the first sample
Align = Callable[[np.ndarray, int, str], Iterable[tuple[str, float, float]]]


@dataclass(frozen=True)
class Piece:
    """What was spoken at once: of a long text, some sentences."""

    text: str
    chars: tuple[int, int]  # of the text as given: first, behind the last. Those of all pieces add up to it
    samples: tuple[int, int]  # of the sound: first, behind the last; both the same where nothing was heard
    tokens: Tensor  # (n,) speech tokens, control ids left out
    stop: str  # why it ended: "eos" | "limit" | "guard"; "given" where the tokens were
    words: tuple[Word, ...] = ()  # where they were asked for; seconds of the whole sound

    def record(self) -> Record:
        """For captions: all of it but the tokens, which are counted."""
        found: Record = {
            "text": self.text, "start": self.samples[0] / S3GEN_RATE, "end": self.samples[1] / S3GEN_RATE,
            "chars": list(self.chars), "samples": list(self.samples), "tokens": len(self.tokens), "stop": self.stop,
        }
        return found | ({"words": [word._asdict() for word in self.words]} if self.words else {})

    def aligned(self, wave: np.ndarray, align: Align) -> Piece:
        return dataclasses.replace(self, words=tuple(aligned(self.text, self.samples, wave, align)))


def aligned(text: str, samples: Sequence[int], wave: np.ndarray, align: Align) -> list[Word]:
    """The words that `align` finds in this part of the wave, in order and inside of it whatever it says."""
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


@dataclass
class Speech:
    """What became of a job: the sound, and how it came about."""

    wav: Tensor  # (1, N) float32 on the CPU
    tokens: list[Tensor]  # one (n,) LongTensor per piece
    stops: list[str]  # why each piece ended: "eos" | "limit" | "guard"
    seconds: dict[str, float] = field(default_factory=dict)  # spent on each stage, shared by a batch
    pieces: list[Piece] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)  # one per piece where there were several takes, or could be

    def align(self, align: Align) -> Speech:
        """The times of the words, from `align(samples, rate, text)`, which is asked for each piece."""
        wave = self.wav[0].numpy()
        self.pieces = [piece.aligned(wave, align) for piece in self.pieces]
        return self

    def records(self) -> list[Record]:
        return [piece.record() for piece in self.pieces]

    def captions(self, kind: str) -> str:
        """The text of a caption file: ".srt", ".vtt" or ".json"."""
        return written(kind, self.records(), sample_rate=S3GEN_RATE, seconds=self.wav.shape[-1] / S3GEN_RATE)

    def to_srt(self) -> str:
        return self.captions(".srt")

    def to_vtt(self) -> str:
        return self.captions(".vtt")

    def to_json(self) -> str:
        return self.captions(".json")


def audible(utterance: Utterance) -> Tensor:
    return torch.tensor(utterance.audible(), dtype=torch.long)


def pieces_of(utterances: Sequence[Utterance], places: Sequence[tuple[int, int]]) -> list[Piece]:
    return [Piece(u.text, u.chars, at, audible(u), str(u.stopped)) for u, at in zip(utterances, places)]
