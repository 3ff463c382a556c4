"""Answers for a request whose body never comes to a replica.

Ray hands a request's body to the first replica that asks for it. If that one dies before the proxy knows that it has
taken the request, Ray gives the request to another, which would wait for the body until the client goes.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from starlette.datastructures import Headers

from ..serve.errors import ApiError, unavailable

logger = logging.getLogger(__name__)
PATIENCE = 15.0  # s for the first part of a body that the proxy has already, see again.py
SLOW = 60.0  # s for the first part of one that the client still sends
LOST = "x-chatterbox-lost"  # header of such an answer, upon which the proxy repeats the request
WITH_BODY = ("POST", "PUT", "PATCH")


def repeatable(scope: Any) -> bool:
    """Returns whether the request neither stores nor deletes anything. The proxy reads its body first."""
    kind = Headers(scope=scope).get("content-type", "")
    return scope["method"] in ("GET", "HEAD") or (scope["method"] == "POST" and kind.startswith("application/json"))


def gone() -> ApiError:
    return unavailable("The replica that had this request is gone")


class Arrival:
    """ASGI around a replica's app."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] not in WITH_BODY:
            await self.app(scope, receive, send)
            return
        patience = PATIENCE if repeatable(scope) else SLOW
        try:
            messages = [await asyncio.wait_for(receive(), patience)]
        except asyncio.TimeoutError:  # in Python 3.10 not yet the built-in TimeoutError
            logger.warning("%s %s: its body did not come in %g s", scope["method"], scope["path"], patience)
            await self._late(scope).response()(scope, receive, send)
            return

        async def received() -> Any:
            return messages.pop() if messages else await receive()

        await self.app(scope, received, send)

    @staticmethod
    def _late(scope: Any) -> ApiError:
        if not repeatable(scope):
            return ApiError(408, f"Nothing of the body came in {SLOW:g} s; send it again", code="body_missing")
        error = gone()
        error.headers[LOST] = "1"
        return error
