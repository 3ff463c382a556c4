"""Rows through one model's engine: so many at once that its batch stays full while single ones end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from ..serve.encoders import encode
from ..text.pronounce import Pronunciations
from .chosen import ChosenSpeech
from .rows import TAKES, Row

Judge = Callable[[Row, np.ndarray, int], dict[str, Any]]  # (row, (n,) samples, rate) -> more for the manifest


@dataclass(frozen=True)
class Made:
    row: Row
    record: dict[str, Any]  # the manifest's line, without the file
    data: bytes  # encoded


@dataclass(frozen=True)
class Failed:
    row: Row
    reason: str


def speak(
    model: Any, rows: Iterable[Row], kind: str, *, in_flight: int | None = None, judge: Judge | None = None,
    pronounce: Pronunciations | None = None, score: Any = None,
) -> Iterator[Made | Failed]:
    """What becomes of each, in the order in which they end. `in_flight`: speeches in the engine or waiting for it; by
    default twice what it speaks side by side, so that none of its slots waits for this thread. `pronounce` is for rows
    that have no respellings of their own; `score` chooses among the takes of those that ask for some."""
    rows = iter(rows)
    desk = _Desk(model, kind, judge, pronounce, score)
    try:
        for row in rows:
            if (failed := desk.begin(row)) is not None:
                yield failed
            while len(desk.going) >= (in_flight or 2 * model.options.slots):
                yield from desk.next()
        while desk.going:
            yield from desk.next()
    finally:
        for speech in desk.going:
            speech.cancel()
        desk.pool.shutdown(wait=False)


class _Desk:
    def __init__(
        self, model: Any, kind: str, judge: Judge | None, pronounce: Pronunciations | None, score: Any
    ) -> None:
        self.model, self.kind, self.judge, self.pronounce, self.score = model, kind, judge, pronounce, score
        self.pool = ThreadPoolExecutor(model.options.slots)  # for rows in several takes; has no threads until then
        self.going: dict[Any, tuple[Row, list[np.ndarray]]] = {}  # speech -> its row, and what is there of its sound
        self.voices: dict[str, Any] = {}  # the model itself keeps the last few only, and neighbours differ
        self.news: SimpleQueue[Any] = SimpleQueue()  # of speeches with something to take

    def begin(self, row: Row) -> Failed | None:
        try:
            speech = self.speech(row)
        except Exception as error:
            return Failed(row, said(error))
        self.going[speech] = row, []
        speech.notify(partial(self.news.put, speech))
        return None

    def speech(self, row: Row) -> Any:
        options, voice = dict(row.options), self.voice(row.recording)
        if "pronounce" not in options and self.pronounce is not None:
            options["pronounce"] = self.pronounce.for_voice(row.recording and Path(row.recording).stem)
        if row.several_takes:
            return ChosenSpeech(self.pool, self.model, row.text, voice, options | {"score": self.score})
        single = {name: value for name, value in options.items() if name not in TAKES}
        return self.model.submit(row.text, voice=voice, **single)

    def voice(self, path: str | None) -> Any:
        if path is None:
            return None
        if path not in self.voices:
            self.voices[path] = self.model.prepare_voice(path)
        return self.voices[path]

    def next(self) -> Iterator[Made | Failed]:
        """Waits for news, which need not be an end."""
        speech = self.news.get()
        if speech not in self.going:
            return
        row, waves = self.going[speech]
        try:
            while (wave := speech.take()) is not None:
                waves.append(wave[0].numpy())
            return
        except StopIteration:
            pass
        except Exception as error:
            del self.going[speech]
            yield Failed(row, said(error))
            return
        del self.going[speech]
        try:
            made: Made | Failed = self.made(row, speech, np.concatenate(waves))
        except Exception as error:  # the judge's, or an encoder's
            made = Failed(row, said(error))
        yield made

    def made(self, row: Row, speech: Any, wave: np.ndarray) -> Made:
        rate = self.model.sr
        record = {
            "id": row.id, "digest": row.digest, "seed": row.options["seed"], "duration": round(len(wave) / rate, 3),
            "tokens": sum(map(len, speech.tokens)), "stopped": speech.stops,
            "seconds": {stage: round(spent, 3) for stage, spent in speech.seconds.items()},
        }
        if isinstance(speech, ChosenSpeech):
            record["kept"] = speech.kept
        if self.judge is not None:
            record |= self.judge(row, wave, rate)
        return Made(row, record, encode(self.kind, wave, rate))


def said(error: Exception) -> str:
    return " ".join(str(error).split()) or repr(error)
