"""In Ray's proxies, in front of the replicas: what one of them took with it is asked of another before anybody notices.

Ray calls `middlewares` where the environment of its proxies names it. Without it, a request whose replica dies is a 500
without a word, and Ray's own refusals are plain text.
"""

from __future__ import annotations

import logging
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware

from ..serve.errors import ApiError, unavailable

logger = logging.getLogger(__name__)
PROXIES = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}:middlewares",
    "RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0",  # or those of other machines get nothing until one is full
}
TRIES = 3
MOST_HELD = 2 << 20  # bytes of a request that is held for another try
REFUSED = {  # Ray's own answers
    408: "The request took too long", 429: "As many speeches are waiting as are taken", 503: "No replica is there",
}


def middlewares() -> list[Middleware]:
    return [Middleware(Again)]


class Again:
    """ASGI. A request that has no answer yet when its replica is gone is asked again, where that is the same as asking
    once; then it is a 503."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        asked, answer = Held(receive, repeatable(scope)), Answer(send)
        for left in reversed(range(TRIES)):
            asked.rewind()
            await self.app(dict(scope), asked.receive, answer.send)
            if answer.begun or asked.left:
                return
            if not (left and asked.held is not None):
                break
            logger.warning("%s %s: its replica is gone, and it is asked of another", scope["method"], scope["path"])
        await unavailable("The replica that had this request is gone").response()(scope, receive, send)


def repeatable(scope: Any) -> bool:
    """Nothing is kept or deleted by it."""
    kind = Headers(scope=scope).get("content-type", "")
    return scope["method"] in ("GET", "HEAD") or (scope["method"] == "POST" and kind.startswith("application/json"))


class Held:
    """A request that can be read more than once."""

    def __init__(self, receive: Any, repeatable: bool) -> None:
        self._receive = receive
        self.held: list[Any] | None = [] if repeatable else None  # its messages; None: it is not held any more
        self.size = self.next = 0
        self.left = False  # the client has

    def rewind(self) -> None:
        self.next = 0

    async def receive(self) -> Any:
        if self.held is not None and self.next < len(self.held):
            self.next += 1
            return self.held[self.next - 1]
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.left = True
        elif self.held is not None:
            self.size += len(message.get("body", b""))
            if self.size > MOST_HELD:
                self.held = None
            else:
                self.held.append(message)
                self.next += 1
        return message


class Answer:
    """Ray's own refusals become what clients know as an error."""

    def __init__(self, send: Any) -> None:
        self._send = send
        self.begun = self._replaced = False

    async def send(self, message: Any) -> None:
        if self._replaced:
            return
        if message["type"] == "http.response.start":
            self.begun = True
            headers = MutableHeaders(scope=message)
            if message["status"] in REFUSED and headers.get("content-type", "").startswith("text/plain"):
                self._replaced = True
                await refusal(message["status"], headers)({"type": "http"}, None, self._send)
                return
            if names := headers.getlist("x-request-id"):  # the replica's, and Ray's
                headers["x-request-id"] = names[0]
        await self._send(message)


def refusal(status: int, headers: Headers) -> Any:
    code = "queue_full" if status == 429 else "unavailable"
    retry = {"retry-after": headers.get("retry-after", "5")}
    return ApiError(status, f"{REFUSED[status]}; try again later", code=code, headers=retry).response()
