"""Speaks rows of a table with one model, so many at once that the engine's batch stays full while some end."""

from __future__ import annotations

from collections import OrderedDict
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

MOST_VOICES = 256  # kept, 50 MB: more than the model keeps, as neighbouring rows of a table rarely share one
Judge = Callable[[Row, np.ndarray, int], dict[str, Any]]  # (row, (n,) samples, rate) -> more fields of its record


@dataclass(frozen=True)
class Made:
    row: Row
    record: dict[str, Any]  # the manifest's line, without the file's name
    data: bytes  # encoded sound


@dataclass(frozen=True)
class Failed:
    row: Row
    reason: str


def speak(
    model: Any, rows: Iterable[Row], kind: str, *, in_flight: int | None = None, judge: Judge | None = None,
    pronounce: Pronunciations | None = None, score: Any = None,
) -> Iterator[Made | Failed]:
    """Yields the outcome of each row, in the order in which they end. `kind`: the format. `in_flight`: speeches that
    the engine has or that wait for it; by default twice its slots, so that none of them waits for this thread.
    `pronounce`: for rows without respellings of their own. `score`: chooses among the takes of a row."""
    rows = iter(rows)
    speeches = _InFlight(model, kind, judge, pronounce, score)
    try:
        for row in rows:
            if (failed := speeches.begin(row)) is not None:
                yield failed
            while len(speeches.going) >= (in_flight or 2 * model.options.slots):
                yield from speeches.next()
        while speeches.going:
            yield from speeches.next()
    finally:
        for speech in speeches.going:
            speech.cancel()
        speeches.pool.shutdown(wait=False)


class _InFlight:
    """The speeches that a model makes at the moment."""

    def __init__(
        self, model: Any, kind: str, judge: Judge | None, pronounce: Pronunciations | None, score: Any
    ) -> None:
        self.model, self.kind, self.judge, self.pronounce, self.score = model, kind, judge, pronounce, score
        self.pool = ThreadPoolExecutor(model.options.slots)  # for rows in several takes; starts threads on demand
        self.going: dict[Any, tuple[Row, list[np.ndarray]]] = {}  # speech -> its row and its waves so far, (n,)
        self.voices: OrderedDict[str, Any] = OrderedDict()  # by path, the last used last
        self.ready: SimpleQueue[Any] = SimpleQueue()  # speeches with something to take

    def begin(self, row: Row) -> Failed | None:
        try:
            speech = self.speech(row)
        except Exception as error:
            return Failed(row, one_line(error))
        self.going[speech] = row, []
        speech.notify(partial(self.ready.put, speech))
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
            if len(self.voices) > MOST_VOICES:
                self.voices.popitem(last=False)
        self.voices.move_to_end(path)
        return self.voices[path]

    def next(self) -> Iterator[Made | Failed]:
        """Waits until a speech has something to take. Yields its outcome if that was the end of it."""
        speech = self.ready.get()
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
            yield Failed(row, one_line(error))
            return
        del self.going[speech]
        try:
            outcome: Made | Failed = self.made(row, speech, np.concatenate(waves))
        except Exception as error:  # of the judge or of an encoder
            outcome = Failed(row, one_line(error))
        yield outcome

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


def one_line(error: Exception) -> str:
    """Returns the error's message in one line."""
    return " ".join(str(error).split()) or repr(error)
