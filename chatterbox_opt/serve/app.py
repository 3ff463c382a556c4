"""The application: routes, errors and the gate put together."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from .. import __version__
from . import (
    errors,
    routes_conversions,
    routes_devnen,
    routes_health,
    routes_openai,
    routes_page,
    routes_websocket,
)
from .limits import Gate
from .metrics import Figures
from .service import Service

ROUTES = (routes_openai, routes_conversions, routes_websocket, routes_devnen, routes_health, routes_page)


def create_app(service: Service) -> FastAPI:
    """A service without a model answers 503 until opened() gives it one."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> Any:
        yield
        service.close()

    app = FastAPI(title="chatterbox_opt", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    app.state.registry = CollectorRegistry()
    app.state.registry.register(Figures(service))
    for module in ROUTES:
        app.include_router(module.router)
    app.add_exception_handler(errors.ApiError, errors.handle_api_error)
    app.add_exception_handler(HTTPException, errors.handle_http_error)
    app.add_exception_handler(RequestValidationError, errors.handle_invalid)
    app.add_exception_handler(Exception, errors.handle_unforeseen)
    app.add_middleware(Gate, settings=service.settings, draining=service.draining)
    if service.settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=service.settings.allowed_origins, allow_methods=["*"], allow_headers=["*"],
            expose_headers=["x-request-id", "x-sample-rate", "x-ignored-parameters", "retry-after"],
        )
    return app
