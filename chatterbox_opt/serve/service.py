"""What the routes stand on: the model, its voices, who is let in, and the threads for what would block."""

from __future__ import annotations

import asyncio
import collections
import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from ..text.markup import pauses
from ..text.split import width
from .conversions import Converter
from .errors import ApiError, busy, told, unavailable
from .live import LiveSpeech, Sound
from .settings import ServeSettings
from .speech_request import Manner
from .voice_names import folded
from .voices import VoiceStore

logger = logging.getLogger(__name__)
ENCODING_THREADS = 4
LOOKING_THREADS = 4  # for voices, which may be far away
MOST_CHANGES = 16  # uploads and deletions in hand
MOST_SESSIONS = 1000  # that text comes over, most of them silent most of the time
LONG = 5_000  # characters: cutting up such a text takes some tenths of a second; 100,000 in words up to half a minute
WHOLE = 5_000  # letters, about five minutes, of a text whose sound is joined and watermarked at once: 1 MB a second
WHOLE_PAUSES = 60.0  # s of pauses in such a text
BY_PIECES = 60.0  # s of a chunk of other texts: more than a piece has
RECENT = 32  # speeches whose duration tells how long the others will wait


class Service:
    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.model: Any = None  # None while it is being loaded
        self.voices: VoiceStore | None = None
        self.converter: Converter | None = None
        self.draining = asyncio.Event()
        self.live: dict[LiveSpeech, float] = {}  # -> when it began
        self.busy = 0  # conversions, uploads and sessions in hand
        self.changes = 0  # uploads and deletions of voices among them
        self.refused = 0  # requests answered with 429
        self.left = 0  # clients that left before the end
        self._entering = 0  # speeches on their way into the engine
        self._durations: collections.deque[float] = collections.deque(maxlen=RECENT)
        self._encoding = ThreadPoolExecutor(ENCODING_THREADS, "serve-encode")
        # One thread each: speeches begin in the order they came, and short ones do not wait for a long text.
        self._entry, self._long_entry = (ThreadPoolExecutor(1, f"serve-submit-{name}") for name in ("short", "long"))
        self._preparing = ThreadPoolExecutor(1, "serve-voices")
        self._looking_up = ThreadPoolExecutor(LOOKING_THREADS, "serve-look-up")

    def opened(self, model: Any) -> None:
        """The model is there. Called in the thread that loaded it, before anybody can ask for speech."""
        self.voices = VoiceStore(self.settings.voices_dir, model, self.settings.max_voices)
        self.converter = Converter(model)
        self.model = model

    def close(self) -> None:
        for live in list(self.live):
            live.close()
        if self.model is not None:
            self.model.close()
        for pool in (self._encoding, self._entry, self._long_entry, self._preparing, self._looking_up):
            pool.shutdown(cancel_futures=True)
        if self.converter is not None:
            self.converter.close()

    # ---- who is let in ---------------------------------------------------------------------------

    def check_ready(self) -> None:
        if self.draining.is_set():
            raise unavailable("The server is shutting down")
        if self.model is None:
            raise unavailable("The model is being loaded")

    def waiting(self) -> int:
        return self._entering + sum(not live.started for live in self.live)

    def _room(self) -> int:
        """For how many on their way: as many as may wait, and as there are free slots, for which nobody waits."""
        free = self.model.options.slots - sum(live.started for live in self.live)
        return self.settings.max_waiting + max(0, free)

    def idle(self) -> bool:
        return not (self.live or self._entering or self.busy)

    def unfinished(self) -> str:
        """What it is not idle for, in words."""
        speeches = self._entering + len(self.live)
        return f"{speeches} speech{'es' if speeches > 1 else ''}" if speeches else "what was begun"

    def retry_after(self) -> int:
        """Seconds until about as many speeches have ended as are waiting now, from how long the last ones took."""
        if not self._durations:
            return 1
        usual = sum(self._durations) / len(self._durations)
        working = max(1, len(self.live) - self.waiting())
        return max(1, min(60, math.ceil(usual * self.waiting() / working)))

    # ---- speech ----------------------------------------------------------------------------------

    async def speak(self, text: str, manner: Manner, *, patient: bool = False) -> LiveSpeech:
        """`patient`: waits for a place in the queue instead of being refused."""
        self.check_text(text)
        arguments = manner.arguments(self.model, self.settings.model_id)
        silence = self.check_pauses(text) if manner.markup else 0.0
        if manner.whole() and (width(text[: WHOLE + 1]) > WHOLE or silence > WHOLE_PAUSES):
            arguments["first_chunk"] = BY_PIECES  # its sound is never in memory as a whole
        arguments["voice"] = await self.voice(manner.voice_name())
        if self.settings.pronounce is not None:
            arguments["pronounce"] = self.pronunciations(manner.voice_name())
        while patient and self.waiting() >= self._room():
            await asyncio.sleep(0.05)
        return await self._enter(text, arguments)

    def pronunciations(self, voice: str | None) -> Any:
        """Those of a voice, whether it is asked for by its name, in capitals or not, or by its id."""
        every = self.settings.pronounce
        name = self.voices.name_of(voice) if voice else None
        if name is not None and name not in every.voices:
            name = next((other for other in every.voices if folded(other) == folded(name)), None)
        return every.for_voice(name)

    async def voice(self, name: str | None) -> Any:
        """What the engine calls a voice; from where it is kept, if it was not used lately."""
        pool = self._looking_up if name else self._encoding  # the model's own is never far away
        return await self.in_thread(pool, self.voices.get, name)

    async def voice_list(self) -> dict[str, Any]:
        return await self.in_thread(self._looking_up, self.voices.listing)

    def check_text(self, text: str) -> None:
        if not text.strip():
            raise ApiError(400, "There is no text to say", param="input", code="empty_text")
        if len(text) > self.settings.max_text:
            message = f"The text has {len(text)} characters; this server takes {self.settings.max_text} at a time"
            raise ApiError(400, message, param="input", code="text_too_long")

    def check_pauses(self, text: str) -> float:
        """Returns the seconds of its pauses."""
        silence = pauses(text)
        if silence > self.settings.max_pauses:
            message = (
                f"The pauses of this text add up to {silence:g} s; this server takes {self.settings.max_pauses:g} s "
                "at a time"
            )
            raise ApiError(400, message, param="input", code="pauses_too_long")
        return silence

    async def _enter(self, text: str, arguments: dict[str, Any]) -> LiveSpeech:
        """Into the engine, from a thread: a long text takes a while to be cut up and tokenized."""
        self._entering += 1
        try:
            if self.waiting() > self._room():
                self.refused += 1
                raise busy(self.retry_after())
            pool = self._entry if len(text) < LONG else self._long_entry
            entry = pool.submit(lambda: self.model.submit(text, **arguments))
            try:
                speech = await asyncio.wrap_future(entry)
            except asyncio.CancelledError:  # whoever asked has left meanwhile: before its turn it has none
                entry.cancel()
                entry.add_done_callback(lambda done: done.cancelled() or done.exception() or done.result().cancel())
                raise
            except (ValueError, TypeError) as error:
                raise told(error) from error
            live = LiveSpeech(speech, self._closed)
            self.live[live] = time.monotonic()
            return live
        finally:
            self._entering -= 1

    def _closed(self, live: LiveSpeech) -> None:
        began = self.live.pop(live, None)
        if began is not None:
            self._durations.append(time.monotonic() - began)

    def sound(self, live: LiveSpeech, manner: Manner) -> Sound:
        return Sound(
            live, manner.response_format, self.model.sr, self._encoding, speed=manner.speed, whole=manner.whole()
        )

    async def count_tokens(self, text: str) -> int:
        return await self.in_thread(self._encoding, lambda: len(self.model.tokenizer.encode(text)))

    async def prepare(self, work: Callable[..., Any], *given: Any) -> Any:
        """Changes to the voices, one after another."""
        if self.changes >= MOST_CHANGES:
            self.refused += 1
            raise busy(5)
        self.changes += 1
        try:
            with self.in_hand():
                return await self.in_thread(self._preparing, work, *given)
        finally:
            self.changes -= 1

    def check_sessions(self) -> None:
        if self.busy >= MOST_SESSIONS:
            self.refused += 1
            raise busy(30)

    @contextmanager
    def in_hand(self) -> Iterator[None]:
        """The server does not end before this has."""
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1

    async def in_thread(self, pool: ThreadPoolExecutor, work: Callable[..., Any], *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, work, *given)
