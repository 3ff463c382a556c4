"""What speech in chunks needs around the networks: when to render, how pieces meet, and a thread behind an iterator."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
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


def chunk_sizes(first: int) -> Iterator[int]:
    """Tokens of each chunk: few at first, as somebody waits, then more and more."""
    size = float(first)
    while True:
        yield min(round(size), max(LONGEST, first))
        size *= GROWTH


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
            self._give(self.seam.add(faded(wave, end=True) if last and self.left else wave))
        self._begun = self._begun and not last
        if not self.left:
            self._give(self.seam.rest())

    def _give(self, wave: Tensor) -> None:
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


def in_background(work: Callable[[Callable[[Any], None], Any], None], cancel: Any = None) -> Iterator[Any]:
    """What `work(emit, cancel)` emits, from a thread of its own: a slow listener holds up nobody who waits for the
    model. It begins when the first item is asked for; closing or dropping the iterator sets `cancel`."""
    queue: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    closed = threading.Event()

    def run() -> None:
        try:
            work(lambda item: queue.put(("item", item)), Either(cancel, closed))
            queue.put(("end", None))
        except BaseException as error:  # is raised where the items are taken
            queue.put(("error", error))

    dismiss_workers()
    thread = threading.Thread(target=run, name="chatterbox-stream", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = queue.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        closed.set()
        thread.join()
