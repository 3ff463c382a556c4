"""`chatterbox-opt serve`: the server's life from the first signal of it to the last."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from .app import create_app
from .logs import written_aside
from .service import Service
from .settings import ServeSettings

logger = logging.getLogger("uvicorn.error")  # where the server's own lines go


class Server(uvicorn.Server):
    """A first signal lets what was accepted finish, a second one does not."""

    def __init__(self, service: Service, load: Callable[[], Any]) -> None:
        self.service, self.load = service, load
        self.failure: BaseException | None = None
        settings = service.settings
        super().__init__(uvicorn.Config(
            create_app(service), settings.host, settings.port, server_header=False, ws_max_size=settings.max_json,
            timeout_graceful_shutdown=10, log_level="info",
        ))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.service.draining.is_set():
            self.force_exit = self.should_exit = True
        self.service.draining.set()

    async def _serve(self, sockets: Any = None) -> None:
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._load, args=[loop], name="serve-load", daemon=True).start()
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(written_aside())
            if self.service.settings.wyoming_port is not None:
                from .wyoming_server import listening

                await stack.enter_async_context(listening(self.service))
            draining = loop.create_task(self._drain())
            try:
                await super()._serve(sockets)
            finally:
                draining.cancel()

    def _load(self, loop: asyncio.AbstractEventLoop) -> None:
        began = time.monotonic()
        try:
            self.service.opened(self.load())
        except BaseException as error:  # is raised by run(), where the main thread waits
            self.failure = error
            loop.call_soon_threadsafe(self.service.draining.set)
            return
        logger.info("The model is there after %.1f s; ready to speak", time.monotonic() - began)

    async def _drain(self) -> None:
        """Polls, as a signal's handler may run in the middle of anything."""
        while not self.service.draining.is_set():
            await asyncio.sleep(0.1)
        logger.info("Finishing %d speeches; no new ones are taken", len(self.service.live))
        until = time.monotonic() + self.service.settings.drain_seconds
        while not (self.service.idle() or self.should_exit) and time.monotonic() < until:
            await asyncio.sleep(0.05)
        self.should_exit = True


def serve(settings: ServeSettings, load: Callable[[], Any]) -> None:
    """Until a signal; `load` makes the model, in a thread, while /health says so. Raises what it raises."""
    asyncio.run(_run(settings, load))


async def _run(settings: ServeSettings, load: Callable[[], Any]) -> None:
    server = Server(Service(settings), load)
    await server.serve()
    if server.failure is not None:
        raise server.failure
