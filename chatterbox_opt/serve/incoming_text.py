"""Text that comes while it is written, spoken sentence by sentence; each begins while the one before it is heard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from ..text.markup import language_mark, without_marks
from ..text.split import finished_length, says_something, width
from .errors import ApiError
from .live import LiveSpeech
from .service import Service
from .speech_request import Manner

SHORTEST = 25  # letters; less is held back until more is there, as a few letters by themselves are spoken badly
LONG = 1000  # characters without an end, from which on they are not searched again at every word
AHEAD = 2  # sentences that are made while one is heard


class IncomingText:
    def __init__(self, service: Service, manner: Manner) -> None:
        self.service, self.manner = service, manner
        self._buffer = ""
        self._searched_from = 0  # characters in it from which on it is searched again
        self._taken = 0  # characters in all
        self._language = ""  # the mark that holds for the next sentence, if any
        self._sentences: asyncio.Queue[str | None] = asyncio.Queue()
        self._speeches: asyncio.Queue = asyncio.Queue(AHEAD)
        self._starting = asyncio.ensure_future(self._start())

    def feed(self, text: str) -> None:
        self._taken += len(text)
        if self._taken > self.service.settings.max_text:
            message = f"The text has grown past the {self.service.settings.max_text} characters this server takes"
            raise ApiError(400, message, param="text", code="text_too_long")
        self._buffer += text
        if len(self._buffer) < self._searched_from:
            return
        end = finished_length(self._buffer)
        said = self._said(self._buffer[:end])
        if width(said) >= SHORTEST and says_something(said):
            self._sentences.put_nowait(self._buffer[:end].strip())
            self._buffer = self._buffer[end:]
        self._searched_from = len(self._buffer) + max(0, len(self._buffer) - LONG) // 8

    def finish(self) -> None:
        """No more comes: what is left is spoken, unless there is no letter or digit, on which models babble."""
        if says_something(self._said(self._buffer)):
            self._sentences.put_nowait(self._buffer.strip())
        self._buffer = ""
        self._sentences.put_nowait(None)

    def _said(self, text: str) -> str:
        return (without_marks(text) if self.manner.markup else text).strip()

    def _in_language(self, text: str) -> str:
        """Returns a sentence in the language that a mark in an earlier one has chosen. The mark has a line of its own,
        as a heading begins a line."""
        if not self.manner.markup:
            return text
        before = self._language
        self._language = language_mark(text) or before
        return f"{before}\n{text}" if before else text

    async def _start(self) -> None:
        """Gives the engine the next sentences, a few ahead of the one that is heard."""
        first = True
        while (text := await self._sentences.get()) is not None:
            spoken = self._in_language(text)
            try:
                live: LiveSpeech | Exception = await self.service.speak(spoken, self.manner, patient=not first)
            except Exception as error:
                live = error
            first = False
            try:
                await self._speeches.put((text, live))
            except asyncio.CancelledError:
                _close(live)
                raise
        await self._speeches.put(None)

    async def __aiter__(self) -> AsyncIterator[tuple[str, LiveSpeech | Exception]]:
        """Sentences in their order, with their speech or with what was wrong with it. Close each when it was heard."""
        while (item := await self._speeches.get()) is not None:
            yield item

    def close(self) -> None:
        self._starting.cancel()
        while not self._speeches.empty():
            if (item := self._speeches.get_nowait()) is not None:
                _close(item[1])


def _close(live: LiveSpeech | Exception) -> None:
    if isinstance(live, LiveSpeech):
        live.close()
