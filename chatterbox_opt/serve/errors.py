"""What a client is told when something is wrong: OpenAI's error object, whatever the reason."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

logger = logging.getLogger(__name__)

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """ASCII alone, as a message may quote half a surrogate pair."""
        return Response(json.dumps(self.body()), self.status, self.headers, media_type="application/json")


def busy(seconds: int) -> ApiError:
    message = f"The server has as many speeches waiting as it takes; try again in {seconds} s"
    return ApiError(429, message, code="queue_full", headers={"retry-after": str(seconds)})


def unavailable(message: str) -> ApiError:
    return ApiError(503, message, code="unavailable", headers={"retry-after": "5"})


def told(error: BaseException) -> ApiError:
    """What a client may know of an error of the model: its words where the client's values caused it."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, (ValueError, TypeError)):
        message = str(error)
        name = message.split("=", 1)[0]
        return ApiError(400, message, param=name if name.isidentifier() and "=" in message else None)
    logger.error("speech failed", exc_info=error)
    return ApiError(500, "The speech could not be made; the server's log says why")


def handle_api_error(request: Request, error: ApiError) -> Response:
    return error.response()


def handle_http_error(request: Request, error: HTTPException) -> Response:
    return ApiError(error.status_code, str(error.detail), headers=error.headers).response()


def handle_invalid(request: Request, error: RequestValidationError) -> Response:
    """The first fault; 400, as OpenAI has it."""
    fault = error.errors()[0]
    where = [str(part) for part in fault["loc"] if part not in ("body", "query", "path")]
    name = where[0] if where else None  # behind it are names of our own: of the types that it may have
    if fault["type"] == "extra_forbidden":
        return ApiError(400, f"Unknown parameter: {name}", param=name, code="unknown_parameter").response()
    if fault["type"] == "missing":
        what = f"Missing required parameter: {name}" if name else "The request has no body"
        return ApiError(400, what, param=name, code="missing_parameter").response()
    if fault["type"] == "json_invalid":  # where: the character
        message = f"The request's body is no JSON: {fault['ctx']['error']} at character {name}"
        return ApiError(400, message, code="invalid_json").response()
    if fault["type"] == "model_attributes_type":
        message = "The request's body must be a JSON object, sent with content-type: application/json"
        return ApiError(400, message, code="invalid_value").response()
    return ApiError(400, f"{name or 'body'}: {fault['msg']}", param=name, code="invalid_value").response()


def handle_unforeseen(request: Request, error: Exception) -> Response:
    return told(RuntimeError(repr(error))).response()
