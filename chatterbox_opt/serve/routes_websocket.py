"""Text in as it comes, sound out as it is made, over one WebSocket; the messages are vllm-omni's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import Field, ValidationError

from .errors import ApiError, told
from .incoming_text import IncomingText
from .sending import in_time
from .service import Service
from .speech_request import Format, Manner

router = APIRouter()
logger = logging.getLogger(__name__)
GOING_AWAY, AGAIN_LATER, MISUSE = 1001, 1013, 1008


class SessionConfig(Manner):
    type: str = "session.config"
    response_format: Format = "pcm"
    stream_audio: bool = Field(True, description="False: one frame a sentence")
    split_granularity: str = Field("sentence", pattern="^sentence$")

    def whole(self) -> bool:
        return not self.stream_audio


@router.websocket("/v1/audio/speech/stream")
async def stream(socket: WebSocket) -> None:
    service: Service = socket.app.state.service
    await socket.accept()
    try:
        service.check_ready()
        service.check_sessions()
        with service.in_hand():
            await Session(service, socket).run()
    except ApiError as error:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await socket.send_text(json.dumps(_error(error)))
            await socket.close(AGAIN_LATER if error.status in (429, 503) else MISUSE)
    except WebSocketDisconnect:
        service.left += 1


class Session:
    def __init__(self, service: Service, socket: WebSocket) -> None:
        self.service, self.socket = service, socket

    async def run(self) -> None:
        config = await self._config()
        text = IncomingText(self.service, config)
        telling = asyncio.ensure_future(self._tell(text, config))
        reading = asyncio.ensure_future(self._read(text))
        try:
            await asyncio.wait({telling, reading}, return_when=asyncio.FIRST_COMPLETED)
            (reading if reading.done() else telling).result()  # reading ends by an error alone
            await self.socket.close(GOING_AWAY if self.service.draining.is_set() else 1000)
        finally:
            for task in (telling, reading):
                task.cancel()
            await asyncio.gather(telling, reading, return_exceptions=True)
            text.close()

    async def _config(self) -> SessionConfig:
        message = await self._message()
        if message is None or message.get("type") != "session.config":
            raise ApiError(400, "The first message must be session.config", code="invalid_message")
        try:
            config = SessionConfig(**message)
        except ValidationError as error:
            fault = error.errors()[0]
            name = ".".join(map(str, fault["loc"]))
            raise ApiError(400, f"{name}: {fault['msg']}", param=name, code="invalid_value") from error
        config.arguments(self.service.model, self.service.settings.model_id)  # raises what is wrong with it now
        await self.service.voice(config.voice_name())
        return config

    async def _read(self, text: IncomingText) -> None:
        """Until the client has no more to say, or the server goes away: what was said by then is spoken."""
        while (message := await self._message()) is not None:
            kind = message.get("type")
            if kind == "input.text" and isinstance(message.get("text"), str):
                text.feed(message["text"])
            elif kind == "input.done":
                break
            else:
                fault = ApiError(400, f"{str(kind)[:40]!r}: input.text with a text, or input.done, is needed")
                await self._send(_error(fault))
        text.finish()
        while (await self.socket.receive())["type"] != "websocket.disconnect":
            pass  # only to hear that the client has left
        raise WebSocketDisconnect

    async def _message(self) -> dict[str, Any] | None:
        """The next one; None when the server drains."""
        receiving = asyncio.ensure_future(self.socket.receive_text())
        draining = asyncio.ensure_future(self.service.draining.wait())
        idle = self.service.settings.idle_seconds
        try:
            done, _ = await asyncio.wait({receiving, draining}, timeout=idle, return_when=asyncio.FIRST_COMPLETED)
            if receiving in done:
                return _parsed(receiving.result())
            if not done:
                raise ApiError(408, f"Nothing came for {idle:g} s", code="idle")
            return None
        except KeyError as error:  # a binary frame
            raise ApiError(400, "Messages are JSON in text frames", code="invalid_message") from error
        finally:
            receiving.cancel()
            draining.cancel()

    async def _tell(self, text: IncomingText, config: SessionConfig) -> None:
        count = 0
        async for sentence, live in text:
            if isinstance(live, Exception):
                await self._send(_error(told(live), sentence_index=count))
            else:
                try:
                    await self._sentence(count, sentence, live, config)
                finally:
                    live.close()
            count += 1
        await self._send({"type": "session.done", "total_sentences": count})

    async def _sentence(self, index: int, sentence: str, live: Any, config: SessionConfig) -> None:
        sound = self.service.sound(live, config)
        start = {
            "type": "audio.start", "sentence_index": index, "sentence_text": sentence,
            "format": config.response_format, "sample_rate": sound.rate,
        }
        parts, total, failed = aiter(sound), 0, False
        while True:
            try:
                data = await anext(parts, None)
            except Exception as error:
                failed = True
                await self._send(_error(told(error), sentence_index=index))
                data = None
            if data is None:
                break
            if not total:
                await self._send(start)
            await self._send(data)
            total += len(data)
        await self._send({"type": "audio.done", "sentence_index": index, "total_bytes": total, "error": failed})

    async def _send(self, what: bytes | dict[str, Any]) -> None:
        """A client that reads nothing for long has left. JSON in ASCII: a text may hold half a surrogate pair."""
        sending = self.socket.send_bytes(what) if isinstance(what, bytes) else self.socket.send_text(json.dumps(what))
        try:
            await in_time(sending, self.service.settings.stall_seconds)
        except (RuntimeError, OSError, asyncio.TimeoutError):
            raise WebSocketDisconnect(1006) from None


def _parsed(text: str) -> dict[str, Any]:
    try:
        message = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise ApiError(400, "Messages are JSON objects", code="invalid_message")
    return message


def _error(error: ApiError, **where: Any) -> dict[str, Any]:
    return {"type": "error", "message": error.message, **where, **error.body()}
