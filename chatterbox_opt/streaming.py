"""Speech that is being made: chunks to be taken while the engine is at work on the next ones."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from .audio.joins import ChunkJoiner
from .engine.engine import Engine
from .engine.request import Call, Utterance
from .speech import Piece, audible, pieces_of
from .voice import detached_copy

HELD = 4  # chunks nobody has taken, with which a call pauses


class ChunkQueue:
    """Between the engine, which is told by `is_set()` and `paused()` what is still wanted, and a listener."""

    def __init__(self, joiner: ChunkJoiner, cancel: Any, nothing: Callable[[], Exception]) -> None:
        """`nothing` makes the error that is raised where no sound came."""
        self.joiner, self.cancel, self.nothing = joiner, cancel, nothing
        self.chunks: deque[tuple[Tensor, tuple[int, int] | None]] = deque()  # and their characters; None: all
        self.ready = threading.Condition()
        self.stopped = threading.Event()
        self.notify: Callable[[], None] = lambda: None
        self.placed: Callable[[Utterance], tuple[int, int] | None] | None = None  # of speech that comes as a whole

    def add(self, utterance: Utterance, wave: Tensor, last: bool) -> None:
        wave = self.joiner.add(wave, last)
        if len(wave):
            self.put(detached_copy(wave.float(), "cpu").unsqueeze(0), utterance.chars)

    def put(self, wave: Tensor, chars: tuple[int, int] | None = None) -> None:
        """`chars`: None for the text as a whole."""
        if not wave.numel():
            raise self.nothing()
        self.chunks.append((wave, chars))
        self.tell()

    def place(self, utterance: Utterance) -> tuple[int, int] | None:
        """Its first sample and the one behind its last, once it was heard to its end."""
        if self.placed is not None:
            return self.placed(utterance)
        return dict(enumerate(self.joiner.places)).get(utterance.index)

    def finish(self) -> None:
        if not self.joiner.sounding:
            raise self.nothing()

    def tell(self) -> None:
        with self.ready:
            self.ready.notify_all()
        self.notify()

    def is_set(self) -> bool:
        return self.stopped.is_set() or (self.cancel is not None and self.cancel.is_set())

    def paused(self) -> bool:
        return len(self.chunks) >= HELD


class SpeechStream:
    """An iterator over (1, n) float32 waves on the CPU, made while the iterator waits for nobody's playing. It may also
    be asked without waiting: take(), of which notify() tells when. Closing or dropping it ends the work."""

    def __init__(self, engine: Engine, queue: ChunkQueue, call: Call, prepare: Callable[[], None]) -> None:
        """`prepare` is called ahead of the work."""
        self._engine, self._queue, self._call, self._prepare = engine, queue, call, prepare
        self._begun = self._ended = False
        self.chars = (0, 0)  # of the text as given: what the chunk that was taken last is a part of

    def begin(self) -> SpeechStream:
        """The work begins, unless it has."""
        if not self._begun:
            self._begun = True
            self._prepare()
            self._engine.start(self._call)
        return self

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        if not self._ended:
            self.begin()
        with self._queue.ready:
            while (chunk := self.take()) is None:
                self._queue.ready.wait()
        return chunk

    def take(self) -> Tensor | None:
        """The next chunk, or None where there is none yet. Raises StopIteration at the end, or what ended it."""
        if self._ended:
            raise StopIteration
        done = self.done
        if self._queue.chunks:
            resumes = self._queue.paused()
            chunk, chars = self._queue.chunks.popleft()
            said = self._call.utterances
            self.chars = chars or (said[0].chars[0], said[-1].chars[1])
            if resumes:
                self._engine.wake()
            return chunk
        if done:
            self._ended = True
            try:
                raise self._call.error or StopIteration
            finally:  # an error holds its frames: if they held it in turn, what they had in hand would stay
                self._call.error = None
        return None

    def notify(self, callback: Callable[[], None]) -> None:
        """`callback` is called by the engine after each chunk and at the end, and now if there is something already. It
        has to be quick."""
        self._queue.notify = callback
        if self._queue.chunks or self.done:
            callback()

    def cancel(self) -> None:
        """The work ends within a few tokens or a step of the flow; take() then raises Cancelled."""
        self._queue.stopped.set()
        self._engine.wake()

    def close(self) -> None:
        """As cancel(), and returns when the work has ended; what was not taken is forgotten."""
        self._ended = True
        self.cancel()
        if self._begun:
            self._engine.wait_for_end(self._call)
        self._queue.chunks.clear()

    def __del__(self) -> None:
        self._queue.stopped.set()  # no waiting: this may be called anywhere, by a garbage collection inside the engine

    @property
    def started(self) -> bool:
        """Whether a place in the running batch was given to it."""
        return self._call.started

    @property
    def done(self) -> bool:
        return self._call.done

    @property
    def tokens(self) -> list[Tensor]:
        """Of each piece, control ids left out."""
        return [audible(u) for u in self._call.utterances]

    @property
    def pieces(self) -> list[Piece]:
        """Those whose sound is there to its end: with the last chunk, all."""
        found = [(u, at) for u in self._call.utterances if (at := self._queue.place(u)) is not None]
        return pieces_of([u for u, _ in found], [at for _, at in found])

    @property
    def stops(self) -> list[str | None]:
        """Why each piece ended: "eos" | "limit" | "guard"."""
        return [u.stopped for u in self._call.utterances]

    @property
    def seconds(self) -> dict[str, float]:
        """Spent on each stage, shared with whoever was served beside it."""
        return dict(self._call.seconds)
