"""Home Assistant's protocol: a text in, whole or while it is written, and audio chunks out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event, async_read_event
from wyoming.info import Attribution, Describe, Info, TtsProgram, TtsVoice
from wyoming.ping import Ping, Pong
from wyoming.server import AsyncEventHandler
from wyoming.tts import Synthesize, SynthesizeChunk, SynthesizeStart, SynthesizeStop, SynthesizeStopped

from .. import __version__
from . import catalogue
from .errors import ApiError, told
from .incoming_text import IncomingText
from .sending import in_time
from .service import Service
from .speech_request import Manner

logger = logging.getLogger(__name__)
LOOK = 0.2  # s between two looks whether the client is still there
LINE = 1 << 20  # bytes of an event's header
LEAVE = 1.0  # s for a client to hear of an error before its connection is closed


@asynccontextmanager
async def listening(service: Service) -> AsyncIterator[asyncio.Server]:
    """A TCP server beside the HTTP one, on the same host."""
    connections: set[asyncio.Task] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        connections.add(task)
        try:
            await Handler(service, reader, writer).run()
        except (ConnectionError, asyncio.TimeoutError, asyncio.IncompleteReadError):
            service.left += 1
        except asyncio.CancelledError:
            pass  # the server ends: asyncio's streams log a cancelled task as an error, up to Python 3.12
        except Exception as error:  # of a message that is none
            logger.warning("a Wyoming client was disconnected: %r", error)
        finally:
            connections.discard(task)
            writer.close()

    settings = service.settings
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: asyncio.StreamReaderProtocol(Reader(settings.max_json, loop), connected, loop),
        settings.host, settings.wyoming_port,
    )
    logger.info("Wyoming on port %d", server.sockets[0].getsockname()[1])
    try:
        yield server
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


class Reader(asyncio.StreamReader):
    """Holds no more of an event than `most` bytes, whatever its header says that will come."""

    def __init__(self, most: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(LINE, loop)
        self.most = most

    async def readexactly(self, n: int) -> bytes:
        if n > self.most:
            raise RuntimeError(f"an event of {n} bytes; {self.most} are taken")
        return await super().readexactly(n)


class Handler(AsyncEventHandler):
    def __init__(self, service: Service, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer)
        self.service = service
        self._text: IncomingText | None = None  # while one comes in parts
        self._telling: asyncio.Task | None = None
        self._failed = False

    async def run(self) -> None:
        """Until the client leaves, or its first error: Home Assistant heeds no errors, and would wait for the end of a
        speech, or the closed connection."""
        reading: asyncio.Future[Event | None] | None = None
        try:
            while not self._failed:
                reading = reading or asyncio.ensure_future(async_read_event(self.reader))
                if self._text is not None and not await self._comes(reading):
                    continue
                event = await reading
                reading = None
                if event is None:
                    break
                await self.handle_event(event)
        finally:
            if reading is not None:
                reading.cancel()
            await self.disconnect()
        if self._failed:
            with suppress(asyncio.TimeoutError):
                await in_time(self._see_off(), LEAVE)

    async def _see_off(self) -> None:
        """Reads what still comes: while something is unread, a closed socket may take from the client what it has not
        read yet."""
        self.writer.write_eof()
        while await self.reader.read(LINE):
            pass

    async def _comes(self, reading: asyncio.Future[Event | None]) -> bool:
        """Waits for the next event of a text in parts. If the server drains first, what came by then is spoken; if
        speaking fails, that is told without waiting for the text's end; if nothing comes for long, that is an error."""
        draining, idle = asyncio.ensure_future(self.service.draining.wait()), self.service.settings.idle_seconds
        try:
            first = {reading, draining, self._telling}
            done, _ = await asyncio.wait(first, timeout=idle, return_when=asyncio.FIRST_COMPLETED)
        finally:
            draining.cancel()
        if reading in done:
            return True
        if done:
            await self.handle_event(SynthesizeStop().event())
        else:
            await self._fail(ApiError(408, f"Nothing came for {idle:g} s", code="idle"))
        return False

    async def write_event(self, event: Event) -> None:
        """A client that reads nothing for long has left."""
        await in_time(super().write_event(event), self.service.settings.stall_seconds)

    async def handle_event(self, event: Event) -> bool:
        try:
            await self._handle(event)
        except ApiError as error:
            await self._fail(error)
        except (KeyError, TypeError, AttributeError) as error:
            await self._fail(ApiError(400, f"{event.type}: {error!r}", code="invalid_event"))
        return not self._failed

    async def _handle(self, event: Event) -> None:
        if Describe.is_type(event.type):
            self.service.check_ready()
            await self.write_event((await about(self.service)).event())
        elif Ping.is_type(event.type):
            await self.write_event(Pong(text=Ping.from_event(event).text).event())
        elif Synthesize.is_type(event.type):
            if self._text is None:  # the whole text again, behind its parts, is for servers that take none
                asked = Synthesize.from_event(event)
                await self._begin(asked.voice)
                self._text.feed(asked.text)
                await self._finish()
        elif SynthesizeStart.is_type(event.type):
            await self._begin(SynthesizeStart.from_event(event).voice)
        elif SynthesizeChunk.is_type(event.type) and self._text is not None:
            self._text.feed(SynthesizeChunk.from_event(event).text)
        elif SynthesizeStop.is_type(event.type) and self._text is not None:
            await self._finish()
            await self.write_event(SynthesizeStopped().event())

    async def _begin(self, voice: Any) -> None:
        self.service.check_ready()
        await self._drop()
        self.service.check_sessions()
        manner = Manner(voice=voice.name if voice else None, language=voice.language if voice else None)
        manner.arguments(self.service.model, self.service.settings.model_id)
        await self.service.voice(manner.voice_name())
        self._text = IncomingText(self.service, manner)
        self._telling = asyncio.ensure_future(self._tell(self._text, manner))

    async def _finish(self) -> None:
        self._text.finish()
        try:
            while not self._telling.done():
                await asyncio.wait({self._telling}, timeout=LOOK)
                if self.reader.at_eof():
                    raise ConnectionResetError("the client has left")
            self._telling.result()
        finally:
            await self._drop()

    async def _tell(self, text: IncomingText, manner: Manner) -> None:
        """One audio for all sentences."""
        rate, begun = self.service.model.sr, False
        manner = manner.model_copy(update={"response_format": "pcm"})
        with self.service.in_hand():
            async for _, live in text:
                if isinstance(live, Exception):
                    raise told(live)
                try:
                    async for data in self.service.sound(live, manner):
                        if not begun:
                            await self.write_event(AudioStart(rate, 2, 1).event())
                        begun = True
                        await self.write_event(AudioChunk(rate, 2, 1, data).event())
                except (ConnectionError, asyncio.TimeoutError, ApiError):
                    raise
                except Exception as error:
                    raise told(error) from error
                finally:
                    live.close()
            if not begun:  # nothing to say; but an end is waited for
                await self.write_event(AudioStart(rate, 2, 1).event())
            await self.write_event(AudioStop().event())

    async def _fail(self, error: ApiError) -> None:
        self._failed = True
        await self._drop()
        await self.write_event(Error(text=error.message, code=error.code).event())

    async def _drop(self) -> None:
        telling, text, self._telling, self._text = self._telling, self._text, None, None
        if telling is not None:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
        if text is not None:
            text.close()

    async def disconnect(self) -> None:
        await self._drop()


async def about(service: Service) -> Info:
    spoken = list(catalogue.languages(service.model))
    by = Attribution(name="chatterbox_opt", url="https://github.com/resemble-ai/chatterbox")
    describe = partial(TtsVoice, attribution=by, installed=True, version=__version__, languages=spoken)
    listed = (await service.voice_list())["data"]
    voices = [describe(name=item["name"], description=item["label"]) for item in listed]
    program = TtsProgram(
        name="chatterbox", attribution=by, installed=True, description="Chatterbox TTS", version=__version__,
        voices=voices, supports_synthesize_streaming=True,
    )
    return Info(tts=[program])
