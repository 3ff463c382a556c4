"""A speech as an HTTP response: its status once there is sound, its bytes while it is made, its end with its reader."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from .encoders import MEDIA
from .errors import ApiError, told
from .live import LiveSpeech, Sound
from .sending import in_time
from .service import Service

logger = logging.getLogger(__name__)
BLOCK = 1 << 18  # bytes that a client reads before the others count as unread: what is sent whole may be large


class SpeechResponse(Response):
    """Waits with everything for the first bytes. A client that leaves, or stops reading, ends the speech."""

    plain = True  # the body is the sound alone

    def __init__(self, service: Service, sound: Sound, headers: dict[str, str] | None = None) -> None:
        self.service, self.sound = service, sound
        self.status_code, self.background = 200, None
        self.media_type = MEDIA[sound.kind]
        self.init_headers({"cache-control": "no-store", "x-sample-rate": str(sound.rate), **(headers or {})})

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        leaving = asyncio.ensure_future(gone(receive))
        telling = asyncio.ensure_future(self._tell(scope, receive, send))
        try:
            await asyncio.wait({leaving, telling}, return_when=asyncio.FIRST_COMPLETED)
            if not telling.done():
                self.service.left += 1
        finally:
            leaving.cancel()
            telling.cancel()
            await asyncio.gather(leaving, telling, return_exceptions=True)
            self.sound.live.close()
        if not telling.cancelled():
            telling.result()

    async def _tell(self, scope: Any, receive: Any, send: Any) -> None:
        parts = self.parts()
        try:
            first = await anext(parts, b"")
        except Exception as error:
            await told(error).response()(scope, receive, send)
            return
        headers = self.raw_headers
        if self.sound.whole and self.plain:
            headers = [*headers, (b"content-length", str(len(first)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            await self._send(send, first)
            async for data in parts:
                await self._send(send, data)
        except asyncio.TimeoutError:
            self.service.left += 1
            return  # without the last message: the connection is closed, and the client sees that something is missing
        except Exception as error:
            told(error)
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Any, data: bytes) -> None:
        for start in range(0, len(data), BLOCK):
            message = {"type": "http.response.body", "body": data[start : start + BLOCK], "more_body": True}
            await in_time(send(message), self.service.settings.stall_seconds)

    def parts(self) -> AsyncIterator[bytes]:
        return aiter(self.sound)


class EventResponse(SpeechResponse):
    """The same as server-sent events, with what was used in the last one."""

    plain = False

    def __init__(self, service: Service, sound: Sound, text: str) -> None:
        super().__init__(service, sound)
        self.text = text
        self.media_type = "text/event-stream"
        self.init_headers({"cache-control": "no-store"})

    async def parts(self) -> AsyncIterator[bytes]:
        begun = False
        try:
            async for data in self.sound:
                yield _event("speech.audio.delta", audio=base64.b64encode(data).decode())
                begun = True
        except Exception as error:
            if not begun:
                raise
            yield _event("error", **told(error).body())
            return
        taken, made = await self.service.count_tokens(self.text), self.sound.live.output_tokens()
        usage = {"input_tokens": taken, "output_tokens": made, "total_tokens": taken + made}
        yield _event("speech.audio.done", usage=usage)


def _event(kind: str, **more: Any) -> bytes:
    return f"data: {json.dumps({'type': kind, **more})}\n\n".encode()


async def while_here(request: Request, work: Coroutine[Any, Any, LiveSpeech]) -> LiveSpeech:
    """What `work` returns; it is cancelled if the client leaves before that, as a long text waits for others."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            request.app.state.service.left += 1
            raise ApiError(499, "The client has left", code="client_left")
        return working.result()
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(leaving, working, return_exceptions=True)


async def gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
