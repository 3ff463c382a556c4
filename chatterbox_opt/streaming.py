"""Streams: chunks of speech that a listener takes while the engine computes the next ones."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from .audio.joins import ChunkJoiner
from .config import S3GEN_RATE
from .engine.engine import Engine
from .engine.request import Call, Utterance
from .speech import Piece, audible, pieces_of
from .voice import detached_copy

HELD = 4  # a call pauses when so many chunks wait for its listener


class ChunkQueue:
    """The sink of a stream's call: queues chunks for the listener. The engine asks `is_set()` whether the call is
    cancelled, and `paused()` whether it should wait."""

    def __init__(self, joiner: ChunkJoiner, cancel: Any, nothing: Callable[[], Exception]) -> None:
        """`nothing` returns the error to raise if there was no sound."""
        self.joiner, self.cancel, self.nothing = joiner, cancel, nothing
        self.chunks: deque[tuple[Tensor, tuple[int, int] | None]] = deque()  # (wave, its characters; None: all)
        self.ready = threading.Condition()
        self.stopped = threading.Event()
        self.over = False  # what another thread is still finishing comes too late
        self.notify: Callable[[], None] = lambda: None
        self.placed: Callable[[Utterance], tuple[int, int] | None] | None = None  # place() of speech in one chunk

    def add(self, utterance: Utterance, wave: Tensor, last: bool) -> None:
        wave = self.joiner.add(wave, last)
        if len(wave):
            self.put(detached_copy(wave.float(), "cpu").unsqueeze(0), utterance.chars)

    def put(self, wave: Tensor, chars: tuple[int, int] | None = None) -> None:
        """Queues a chunk. `chars` are its piece's characters, None for the whole text."""
        if not wave.numel():
            raise self.nothing()
        with self.ready:
            if self.over:
                return
            self.chunks.append((wave, chars))
        self.tell()

    def place(self, utterance: Utterance) -> tuple[int, int] | None:
        """Returns (first sample, past the last) of a complete utterance, None of others."""
        if self.placed is not None:
            return self.placed(utterance)
        complete = self.joiner.places
        return complete[utterance.index] if utterance.index < len(complete) else None

    def finish(self) -> None:
        if not self.joiner.sounding:
            raise self.nothing()

    def end(self) -> None:
        """Tells its listener for the last time."""
        with self.ready:
            self.over = True
        self.tell()

    def tell(self) -> None:
        with self.ready:
            self.ready.notify_all()
        self.notify()

    def is_set(self) -> bool:
        return self.stopped.is_set() or (self.cancel is not None and self.cancel.is_set())

    def paused(self) -> bool:
        return len(self.chunks) >= HELD

    def queued(self) -> float:
        """Returns the seconds of sound that wait for the listener."""
        return sum(wave.shape[1] for wave, _ in list(self.chunks)) / S3GEN_RATE


class SpeechStream:
    """An iterator over (1, n) float32 waves on the CPU, computed ahead of the listener. take() and notify() are the way
    to read it without blocking. Closing or dropping it ends the work."""

    def __init__(self, engine: Engine, queue: ChunkQueue, call: Call, prepare: Callable[[], None]) -> None:
        """`prepare` is called once, before the work begins."""
        self._engine, self._queue, self._call, self._prepare = engine, queue, call, prepare
        self._utterances = call.utterances
        self._begun = self._ended = False
        self.chars = (0, 0)  # characters, in the given text, of the piece that the last chunk taken belongs to

    def begin(self) -> SpeechStream:
        """Begins the work, if it has not begun."""
        if not self._begun:
            self._begun = True
            try:
                self._prepare()
                self._engine.start(self._call)
            except BaseException:  # it never runs: nobody may wait for its end
                self._begun, self._ended = False, True
                raise
        return self

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        if not (self._begun or self._ended):
            self._engine.check_may_wait()
            self.begin()
        self._engine.check_process()
        with self._queue.ready:
            while (chunk := self.take()) is None:
                self._engine.check_may_wait()
                self._engine.check_others_may_work()
                self._queue.ready.wait()
        return chunk

    def take(self) -> Tensor | None:
        """Returns the next chunk, or None if there is none yet. Raises StopIteration at the end, or the error that
        ended the work."""
        if self._ended:
            raise StopIteration
        done = self.done
        if self._queue.chunks:
            if resumes := self._queue.paused():
                self._call.resumed()
            chunk, chars = self._queue.chunks.popleft()
            self.chars = chars or (self._utterances[0].chars[0], self._utterances[-1].chars[1])
            if resumes:
                self._engine.wake()
            return chunk
        if done:
            self._ended = True
            try:
                raise self._call.error or StopIteration
            finally:  # the error refers to its frames, and they to the call: a cycle would keep their tensors alive
                self._call.error = None
        return None

    def notify(self, callback: Callable[[], None]) -> None:
        """Sets a function that is called after each chunk and at the end, on whichever thread is at work, and now if
        there is something to take already. It must return quickly. If it refers to this stream, dropping that is not
        enough: close() it."""
        self._queue.notify = callback
        if self._queue.chunks or self.done:
            callback()

    def cancel(self) -> None:
        """Ends the work within a few tokens or one step of the flow; take() then raises Cancelled."""
        self._queue.stopped.set()
        self._engine.wake()

    def close(self) -> None:
        """As cancel(), and waits until the work has ended. Chunks not taken are dropped."""
        self._ended = True
        self.cancel()
        if self._begun:
            self._engine.wait_for_end(self._call)
        self._queue.chunks.clear()

    def __del__(self) -> None:
        self._queue.stopped.set()  # no waiting: this may be called anywhere, by a garbage collection inside the engine

    @property
    def started(self) -> bool:
        """Whether it has a slot in the running batch, or had one."""
        return self._call.started

    @property
    def done(self) -> bool:
        return self._call.done

    @property
    def tokens(self) -> list[Tensor]:
        """(n,) speech tokens per piece, without control ids."""
        return [audible(u) for u in self._utterances]

    @property
    def pieces(self) -> list[Piece]:
        """The pieces whose sound is complete: all of them after the last chunk."""
        found = [(u, at) for u in self._utterances if (at := self._queue.place(u)) is not None]
        return pieces_of([u for u, _ in found], [at for _, at in found])

    @property
    def stops(self) -> list[str | None]:
        """Why each piece ended: "eos" | "limit" | "guard"."""
        return [u.stopped for u in self._utterances]

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds per stage, of batches shared with other calls."""
        return dict(self._call.seconds)
