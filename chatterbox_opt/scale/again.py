"""Middleware of Ray Serve's proxies: repeats a request whose replica died before the client got anything.

Ray calls `middlewares` if the environment of its proxies names it. Without it, a request whose replica dies is answered
with an empty 500, and Ray's own refusals are plain text.
"""

from __future__ import annotations

import logging
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware

from ..serve.errors import ApiError
from .arrival import LOST, gone, repeatable

logger = logging.getLogger(__name__)
PROXIES = {  # environment of the proxies
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}:middlewares",
    "RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0",  # else the proxy's own node gets all until it is full
}
TRIES = 3
MOST_HELD = 2 << 20  # bytes of a request's body that are kept for another try
REFUSED = {  # status of Ray's own answers -> message
    408: "The request took too long", 429: "As many speeches are waiting as are taken", 503: "No replica is there",
}


def middlewares() -> list[Middleware]:
    return [Middleware(Again)]


class Again:
    """ASGI. If a replica dies before the client got anything, the request goes to another replica, up to TRIES in all,
    provided that a repetition changes nothing on the server. Otherwise the answer is a 503."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request, answer = Held(receive), Answer(send)
        if repeatable(scope):
            await request.read()
        if request.client_left:
            return
        for tries_left in reversed(range(TRIES)):
            await self.app(dict(scope), request.receive, answer.send)
            if answer.begun or request.client_left:
                return
            if not tries_left or not request.rewind():
                break
            logger.warning("%s %s: its replica died, another one gets the request", scope["method"], scope["path"])
        await gone().response()(scope, receive, send)


class Held:
    """A request that can be read again after rewind(), if read() has come to its end. Its body is one message then: Ray
    gives what has arrived to the first replica that asks, and no part of it to another."""

    def __init__(self, receive: Any) -> None:
        self._receive = receive
        self._parts: list[Any] = []  # messages to come
        self._whole: Any = None
        self.client_left = False

    async def read(self) -> None:
        """Reads the body, unless it is too large to be kept."""
        size, more = 0, True
        while more and size <= MOST_HELD:
            message = await self._next()
            if self.client_left:
                return
            self._parts.append(message)
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
        if size <= MOST_HELD:
            body = b"".join(part.get("body", b"") for part in self._parts)
            self._whole = {"type": "http.request", "body": body, "more_body": False}
            self._parts = [self._whole]

    def rewind(self) -> bool:
        """Returns whether it can be read again."""
        self._parts = [] if self._whole is None else [self._whole]
        return bool(self._parts)

    async def receive(self) -> Any:
        return self._parts.pop(0) if self._parts else await self._next()

    async def _next(self) -> Any:
        message = await self._receive()
        self.client_left = self.client_left or message["type"] == "http.disconnect"
        return message


class Answer:
    """Sends the answer on. Its head waits for the first part of its body: a replica that dies between them has not
    answered, and neither has one to which the request did not come as a whole (arrival.py). Ray's own refusals become
    error objects as clients know them."""

    def __init__(self, send: Any) -> None:
        self._send = send
        self._head: Any = None
        self.begun = self._replaced = False  # the client got something; it got a refusal in place of what Ray sends

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._head = message
            return
        if not self.begun:
            headers = MutableHeaders(scope=self._head)
            if LOST in headers:
                return
            self.begun = True
            if self._head["status"] in REFUSED and headers.get("content-type", "").startswith("text/plain"):
                self._replaced = True
                await refusal(self._head["status"], headers)({"type": "http"}, None, self._send)
            else:
                if names := headers.getlist("x-request-id"):  # the replica's, and Ray's
                    headers["x-request-id"] = names[0]
                await self._send(self._head)
        if not self._replaced:
            await self._send(message)


def refusal(status: int, headers: Headers) -> Any:
    code = "queue_full" if status == 429 else "unavailable"
    retry = {"retry-after": headers.get("retry-after", "5")}
    return ApiError(status, f"{REFUSED[status]}; try again later", code=code, headers=retry).response()
