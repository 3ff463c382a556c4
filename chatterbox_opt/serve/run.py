"""`chatterbox-opt serve`: the server's life from the first signal of it to the last."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
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
    """A first signal lets what was accepted finish, a second one does not. Never uvicorn's force_exit: behind it the
    speeches and the application are cancelled by asyncio.run(), each with a traceback in the log."""

    should_exit: bool  # uvicorn looks at it ten times a second

    def __init__(self, service: Service, load: Callable[[], Any]) -> None:
        self.service, self.load = service, load
        self.failure: BaseException | None = None
        self.at_once = False  # a second signal came
        self.again = ""  # how whoever sent the first one sends it
        self.beside = contextlib.AsyncExitStack()  # the Wyoming server
        settings = service.settings
        super().__init__(uvicorn.Config(
            create_app(service), settings.host, settings.port, server_header=False, ws_max_size=settings.max_json,
            timeout_graceful_shutdown=10, log_level="info",
        ))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.at_once = self.service.draining.is_set()
        self.again = "press Ctrl-C again" if sig == signal.SIGINT else "send the signal again"
        self.service.draining.set()

    async def _serve(self, sockets: Any = None) -> None:
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._load, args=[loop], name="serve-load", daemon=True).start()
        with written_aside():
            async with self.beside:
                if self.service.settings.wyoming_port is not None:
                    from .wyoming_server import listening

                    await self.beside.enter_async_context(listening(self.service))
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
        service, seconds = self.service, self.service.settings.drain_seconds
        while not service.draining.is_set():
            await asyncio.sleep(0.1)
        if not service.idle():
            logger.info("Finishing %s, for up to %g s; %s to stop at once", service.unfinished(), seconds, self.again)
        until = time.monotonic() + seconds
        while not (service.idle() or self.at_once or self.should_exit) and time.monotonic() < until:
            await asyncio.sleep(0.05)
        if not service.idle():
            why = "Stopped at once" if self.at_once else f"Not finished within {seconds:g} s"
            logger.warning("%s: %s cut off", why, service.unfinished())
            self._leave_clients()
        await self.beside.aclose()  # before the model is closed, whose end would pass for the end of a speech
        self.should_exit = True
        while not self.at_once:  # uvicorn waits for connections now, such as those of slow readers
            await asyncio.sleep(0.05)
        self._leave_clients()

    def _leave_clients(self) -> None:
        """They see that something is missing; the routes end as they do when clients leave."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def serve(settings: ServeSettings, load: Callable[[], Any]) -> None:
    """Until a signal; `load` makes the model, in a thread, while /health says so. Raises what it raises."""
    asyncio.run(_run(settings, load))


async def _run(settings: ServeSettings, load: Callable[[], Any]) -> None:
    server = Server(Service(settings), load)
    await server.serve()
    if server.failure is not None:
        raise server.failure
