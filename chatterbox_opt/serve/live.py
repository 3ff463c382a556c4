"""A speech of the engine's, for the event loop: its sound as it comes, encoded in threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np

from ..audio.stretch import Stretch
from .encoders import ENCODERS

WRITE_SECONDS = 0.5  # of sound that is sent at once: no frame or event grows past what clients take


class LiveSpeech:
    def __init__(self, speech: Any, on_close: Callable[[LiveSpeech], None]) -> None:
        self.speech, self._on_close = speech, on_close
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        speech.notify(self._wake)

    def _wake(self) -> None:
        """Called on whichever thread is at work."""
        try:
            self._loop.call_soon_threadsafe(self._news.set)
        except RuntimeError:  # the loop is closed, and nobody listens any more
            self.speech.cancel()

    async def take(self) -> np.ndarray | None:
        """The next (n,) samples; None at the end. Raises the error that ended the speech."""
        while True:
            self._news.clear()
            try:
                chunk = self.speech.take()
            except StopIteration:
                return None
            if chunk is not None:
                return chunk[0].numpy()
            await self._news.wait()

    @property
    def started(self) -> bool:
        return self.speech.started or self.speech.done

    def output_tokens(self) -> int:
        return sum(len(tokens) for tokens in self.speech.tokens or ())

    def close(self) -> None:
        """Its rows are freed within a block of tokens, which is not waited for; may be called again."""
        self.speech.cancel()
        self._on_close(self)


class Sound:
    """A live speech as the bytes of a file, at its speed."""

    def __init__(
        self, live: LiveSpeech, kind: str, rate: int, pool: Executor, *, speed: float = 1.0, whole: bool = False
    ) -> None:
        self.live, self.kind, self.rate, self.pool, self.whole = live, kind, rate, pool, whole
        self.stretch = Stretch(speed, rate) if speed != 1.0 else None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for data in self._whole() if self.whole else self._parts():
            if data:
                yield data

    async def _parts(self) -> AsyncIterator[bytes]:
        encoder = ENCODERS[self.kind](self.rate)
        size = round(WRITE_SECONDS * self.rate)
        async for wave in self._waves():
            for start in range(0, len(wave), size):
                yield await self._thread(encoder.add, wave[start : start + size])
        yield await self._thread(encoder.end)

    async def _whole(self) -> AsyncIterator[bytes]:
        encoder = ENCODERS[self.kind](self.rate, whole=True)
        data = [await self._thread(encoder.add, wave) async for wave in self._waves()]
        data.append(await self._thread(encoder.end))
        yield b"".join(filter(None, data))

    async def _waves(self) -> AsyncIterator[np.ndarray]:
        while (wave := await self.live.take()) is not None:
            yield wave if self.stretch is None else await self._thread(self.stretch.add, wave)
        if self.stretch is not None:
            yield await self._thread(self.stretch.rest)

    async def _thread(self, work: Callable[..., Any], *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.pool, work, *given)
