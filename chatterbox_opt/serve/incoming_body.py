"""The body of a request on its way in: not larger than it may be, and not for ever."""

from __future__ import annotations

import asyncio
from typing import Any

from .errors import ApiError, unavailable
from .sending import in_time


def too_large(most: int) -> ApiError:
    message = f"The request is larger than the {most} bytes that this server takes"
    return ApiError(413, message, code="too_large", headers={"connection": "close"})


class IncomingBody:
    """ASGI's two functions around a request. Once something is wrong with its body, the app takes the client for gone,
    and whatever it has to say then becomes an answer that tells what is wrong."""

    def __init__(self, receive: Any, send: Any, most: int, seconds: float, draining: asyncio.Event) -> None:
        """`seconds` without a part of it, and the client has left. What is not there when the server drains is not
        waited for."""
        self._receive, self._send, self.most = receive, send, most
        self.seconds, self.draining = seconds, draining
        self.whole = False
        self._count = 0
        self._fault: ApiError | None = None

    async def receive(self) -> Any:
        if self.whole:  # the app listens whether the client leaves
            return await self._receive()
        try:
            message = await in_time(self._next(), self.seconds)
            self.whole = not message.get("more_body", False)
            self._count += len(message.get("body", b""))
            if self._count > self.most:
                raise too_large(self.most)
        except asyncio.TimeoutError:
            what = f"Nothing more of the request came for {self.seconds:g} s"
            self._fault = ApiError(408, what, code="idle", headers={"connection": "close"})
        except ApiError as error:
            self._fault = error
        if self._fault is None:
            return message
        self.whole = True
        return {"type": "http.disconnect"}

    async def _next(self) -> Any:
        receiving, draining = asyncio.ensure_future(self._receive()), asyncio.ensure_future(self.draining.wait())
        try:
            await asyncio.wait({receiving, draining}, return_when=asyncio.FIRST_COMPLETED)
            if not receiving.done():
                raise unavailable("The server is shutting down")
            return receiving.result()
        finally:
            receiving.cancel()
            draining.cancel()

    async def send(self, message: Any) -> None:
        if self._fault is None:
            await self._send(message)
        elif message["type"] == "http.response.start":
            await self._fault.response()({"type": "http"}, self._receive, self._send)
