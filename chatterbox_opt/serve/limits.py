"""What every request passes before a route sees it: its size, its key, the page it comes from; and a name for it."""

from __future__ import annotations

import asyncio
import hmac
import uuid
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import get_route_path

from .errors import ApiError
from .incoming_body import IncomingBody, too_large
from .settings import ServeSettings

OPEN = ("/", "/health", "/health/live", "/health/ready", "/page.css", "/page.js", "/favicon.ico")  # without a key
MOST_FORM_OVERHEAD = 64 * 1024  # bytes of a form around its file
MOST_FORMS = 16  # that are being sent at a time


class Gate:
    """ASGI around the app."""

    def __init__(self, app: Any, settings: ServeSettings, draining: asyncio.Event) -> None:
        self.app, self.settings, self.draining = app, settings, draining
        self.forms: set[IncomingBody] = set()  # of which something is still to come

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check_key(scope, headers)
            self._check_host(scope, headers)
            self._check_origin(scope, headers)
            if scope["type"] == "http":
                await self._limited(scope, receive, _named(send), headers)
                return
        except ApiError as error:
            await _refuse(error, scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _check_key(self, scope: Any, headers: Headers) -> None:
        key = self.settings.api_key
        preflight = scope.get("method") == "OPTIONS" and "access-control-request-method" in headers
        if key is None or preflight or get_route_path(scope) in OPEN:
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), key.encode()):
            message = "A valid API key is needed: Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})

    def _check_host(self, scope: Any, headers: Headers) -> None:
        """A server for this machine alone has the names of this machine. A page may have its own name point here, and
        would pass for a page of this server."""
        host, allowed = headers.get("host"), self.settings.allowed_origins
        if not (host and is_loopback(self.settings.host)) or "*" in allowed or get_route_path(scope) in OPEN:
            return
        if not is_loopback(_name_of(f"//{host}")) and host not in map(_place_of, allowed):
            message = f"This server has names of its own machine only; --allow-origin https://{host} allows this one"
            raise ApiError(403, message, code="host_not_allowed")

    def _check_origin(self, scope: Any, headers: Headers) -> None:
        """A page of another site must not use a server that its visitor can reach."""
        origin, allowed = headers.get("origin"), self.settings.allowed_origins
        if origin is None:
            # With a link, an image or a sound browsers send where it stands in another way.
            if headers.get("sec-fetch-site") not in ("cross-site", "same-site") or get_route_path(scope) in OPEN:
                return
            origin = _origin_of(headers.get("referer", "")) or "other sites"
        if "*" in allowed or origin in allowed or _place_of(origin) == headers.get("host"):
            return
        message = f"Pages of {origin} may not call this server; whoever runs it allows them by --allow-origin"
        raise ApiError(403, message, code="origin_not_allowed")

    async def _limited(self, scope: Any, receive: Any, send: Any, headers: Headers) -> None:
        form = headers.get("content-type", "").lower().startswith("multipart/form-data")
        most = self.settings.max_upload + MOST_FORM_OVERHEAD if form else self.settings.max_json
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > most:
            raise too_large(most)
        body = IncomingBody(receive, send, most, self.settings.stall_seconds, self.draining)
        self.forms = {other for other in self.forms if not other.whole}  # each may hold a file on the disk
        if form and len(self.forms) >= MOST_FORMS:
            raise ApiError(429, "Too many recordings are being sent", code="queue_full", headers={"retry-after": "5"})
        if form:
            self.forms.add(body)
        try:
            await self.app(scope, body.receive, body.send)
        finally:
            self.forms.discard(body)


def is_loopback(host: str | None) -> bool:
    """Whether only this machine can reach what has this name or address."""
    try:
        return host is not None and (host == "localhost" or host.endswith(".localhost") or ip_address(host).is_loopback)
    except ValueError:
        return False


def _name_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _origin_of(url: str) -> str | None:
    scheme, separator, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}" if separator else None


def _place_of(origin: str) -> str:
    """HOST:PORT, as a request's host header has it."""
    return origin.split("://", 1)[-1]


def _named(send: Any) -> Any:
    """Every answer has an id, which clients of OpenAI's report with an error."""
    identity = f"req_{uuid.uuid4().hex}"

    async def wrapped(message: Any) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["x-request-id"] = identity
        await send(message)

    return wrapped


async def _refuse(error: ApiError, scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": error.message[:100]})
        return
    await error.response()(scope, receive, _named(send))
