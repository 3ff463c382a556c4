"""Answers for a request whose body never comes to a replica.

Ray hands a request's body to the first replica that asks for it. If that one dies before the proxy knows that it has
taken the request, Ray gives the request to another, which would wait for the body until the client goes.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ..serve.errors import ApiError, unavailable

logger = logging.getLogger(__name__)
PATIENCE = 15.0  # s for the first part of a body; a proxy has all of it before it calls a replica, see again.py
LOST = "x-chatterbox-lost"  # header of such an answer, upon which the proxy repeats the request
WITH_BODY = ("POST", "PUT", "PATCH")


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
        try:
            messages = [await asyncio.wait_for(receive(), PATIENCE)]
        except asyncio.TimeoutError:  # in Python 3.10 not yet the built-in TimeoutError
            logger.warning("%s %s: its body did not come in %g s", scope["method"], scope["path"], PATIENCE)
            error = gone()
            error.headers[LOST] = "1"
            await error.response()(scope, receive, send)
            return

        async def received() -> Any:
            return messages.pop() if messages else await receive()

        await self.app(scope, received, send)
