"""What speech in chunks needs around the networks: when to render, how pieces meet, and a thread behind an iterator."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from .audio.joins import Seam, faded, pause
from .config import TOKEN_RATE
from .engine.openmp import dismiss_workers
from .engine.stream import LOOKAHEAD, Stream

AHEAD = 4  # pieces of a text whose tokens are drawn side by side: the first is heard a little later, the others in time
GROWTH = 1.5  # of a chunk over the one before it: the flow reads the voice's prompt anew for each
LONGEST = 5 * TOKEN_RATE  # tokens of a chunk

Work = Callable[[Callable[[Any], None], Any], None]  # (emit, cancel)


def chunk_sizes(first: int, hold: int) -> Iterator[int]:
    """Tokens of each chunk: few at first, as somebody waits, then more and more. The sound always ends `hold` tokens
    before them, so the first chunk has as many more."""
    yield first + hold
    size, most = float(first), max(LONGEST, first)
    while True:
        size = min(size * GROWTH, most)
        yield round(size)


class Outlet:
    """Chunks of a text's pieces in, sound out as join() would put it together, watermarked."""

    def __init__(
        self, mark: Callable[[Sequence[Tensor]], list[Tensor]] | None, emit: Callable[[Tensor], None], pieces: int
    ) -> None:
        self.seam, self.emit = Seam(mark), emit
        self.left = pieces  # whose end was not heard yet
        self.sounding = False
        self._begun = False  # the piece that is being heard

    def add(self, wave: Tensor, last: bool = False) -> None:
        """A chunk of a piece, `last` where none of it follows."""
        self.left -= last
        if len(wave):
            if self.sounding and not self._begun:
                wave = torch.cat([pause(wave), faded(wave, start=True)])
            self.sounding = self._begun = True
            wave = self.seam.add(faded(wave, end=True) if last and self.left else wave)
        self._begun = self._begun and not last
        if not self.left:
            wave = torch.cat([wave, self.seam.rest()])
        if len(wave):
            self.emit(wave)


class Narrator:
    """Sounds the pieces of a text in their order, chunk by chunk, while the tokens of all of them are being drawn."""

    def __init__(
        self, live: Sequence[Stream], sizes: Iterator[int], outlet: Outlet, audible: Callable[..., Tensor], click: int
    ) -> None:
        """`live`: what renders each piece; `click`: samples that are left out at a piece's end."""
        self.live, self.sizes, self.outlet, self.audible, self.click = live, sizes, outlet, audible, click
        self.index = self.taken = 0  # the piece being told, and its tokens told
        self.size = next(sizes)

    def look(self, drawn: Sequence[list[int]], results: Sequence[Any]) -> None:
        """Tell what can be told by now."""
        while self.index < len(self.live):
            i, end = self.index, self.taken + self.size
            if results[i] is not None and len(results[i].tokens) <= end + self.size:  # no tiny last chunk
                self._finish(self.live[i], self.audible(results[i].tokens))
            elif len(drawn[i]) >= end + LOOKAHEAD:
                tokens = torch.tensor(drawn[i][: end + LOOKAHEAD])
                self.outlet.add(self.live[i].add(self.audible(tokens, padded=False)))
                self.taken, self.size = end, next(self.sizes)
            else:
                return

    def _finish(self, live: Stream, tokens: Tensor) -> None:
        wave = live.add(tokens, last=True)
        if self.click and len(tokens) > 1:
            wave = wave[: -self.click]
        self.outlet.add(wave, last=True)
        self.index, self.taken = self.index + 1, 0


class Either:
    """Set when one of two events is; either may be missing."""

    def __init__(self, *events: Any) -> None:
        self.events = [e for e in events if e is not None]

    def is_set(self) -> bool:
        return any(e.is_set() for e in self.events)


class Chunks:
    """An iterator over what `work(emit, cancel)` emits, from a thread of its own: a slow listener holds up nobody else.
    It begins when the first chunk is asked for; closing or dropping the iterator sets `cancel`."""

    def __init__(self, work: Work, cancel: Any = None, context: AbstractContextManager | None = None) -> None:
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._closed = threading.Event()
        given = work, self._queue, Either(cancel, self._closed), context or nullcontext()
        self._thread = threading.Thread(target=_run, args=given, name="chatterbox-stream", daemon=True)
        self._begun = False

    def __iter__(self) -> Chunks:
        return self

    def __next__(self) -> Any:
        if self._closed.is_set():
            raise StopIteration
        if not self._begun:
            self._begun = True
            dismiss_workers()
            _running[self._thread] = self._closed
            self._thread.start()
        got = self._queue.get()
        if not isinstance(got, _End):
            return got
        self.close()
        try:
            raise got.error or StopIteration
        finally:  # an error holds its frames: if they held it in turn, what they had in hand would stay
            del got

    def close(self) -> None:
        """The work ends at its next look, within 8 tokens or one step of the flow, and its thread with it."""
        self._closed.set()
        if self._begun and self._thread is not threading.current_thread():
            self._thread.join()

    def __del__(self) -> None:
        self._closed.set()  # no waiting: this may be called anywhere, by a garbage collection inside the thread itself


@dataclass
class _End:
    error: BaseException | None


def _run(work: Work, queue: SimpleQueue, stop: Either, context: AbstractContextManager) -> None:
    end = _End(None)
    try:
        with context:
            work(queue.put, stop)
    except BaseException as error:  # is raised where the chunks are taken
        end.error = error
    finally:
        _running.pop(threading.current_thread(), None)
        queue.put(end)
        del end


_running: dict[threading.Thread, threading.Event] = {}


@atexit.register
def _finish() -> None:
    """A thread that Python leaves behind in the middle of an operation takes the process down with it."""
    for thread, closed in list(_running.items()):
        closed.set()
        thread.join()


def here(device: torch.device) -> AbstractContextManager:
    """For another thread: this one's CUDA device and stream."""
    return torch.cuda.stream(torch.cuda.current_stream(device)) if device.type == "cuda" else nullcontext()
