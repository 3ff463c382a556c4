"""Servers on free ports, in threads of this process, each with a model of its own."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
from threads import soon


@dataclass
class Running:
    uvicorn: Any  # a chatterbox_opt.serve.run.Server
    port: int

    @property
    def service(self) -> Any:
        return self.uvicorn.service

    @property
    def model(self) -> Any:
        return self.service.model

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def openai(self, **how: Any) -> Any:
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, "timeout": 60} | how)


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(folder, load, **settings):
    """Yields a server with these settings; `load` returns its model, as long after its start as it takes."""
    import asyncio

    from chatterbox_opt.serve.run import Server
    from chatterbox_opt.serve.service import Service
    from chatterbox_opt.serve.settings import ServeSettings

    started = threading.Event()
    servers: list[Running] = []

    async def main() -> None:
        chosen = ServeSettings(port=0, voices_dir=folder, **{"model_id": "mini"} | settings)
        server = Server(Service(chosen), load)
        serving = asyncio.ensure_future(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        servers.append(Running(server, server.servers[0].sockets[0].getsockname()[1]))
        started.set()
        await serving

    thread = threading.Thread(target=asyncio.run, args=[main()], daemon=True)
    thread.start()
    assert started.wait(60)
    (server,) = servers
    try:
        yield server
    finally:
        server.uvicorn.should_exit = server.uvicorn.force_exit = True
        thread.join(60)
        assert not thread.is_alive()


def ready(server: Running) -> Running:
    """Returns the server once it has its model."""
    assert soon(lambda: server.model is not None or server.uvicorn.failure is not None, 60)
    assert server.uvicorn.failure is None
    return server


def load_mini() -> Any:
    from chatterbox_opt.tts import ChatterboxTTS

    return ChatterboxTTS.from_mini()


def load_tiny(family: str = "tts") -> Any:
    """Returns a model with random weights that can clone; its speech is noise of one second."""
    from chatterbox_opt import ChatterboxMultilingualTTS, ChatterboxTTS, ChatterboxTurboTTS, SamplingOptions

    cls = {"tts": ChatterboxTTS, "mtl": ChatterboxMultilingualTTS, "turbo": ChatterboxTurboTTS}[family]
    model = cls.from_random(enable_watermark=False)
    model.defaults = SamplingOptions(max_new_tokens=25, cfg_weight=0.0 if family == "turbo" else 0.5)
    return model


@contextlib.contextmanager
def sent(server: Running, path: str, **content: Any) -> Iterator[socket.socket]:
    """A request of a client that reads nothing of its answer, and leaves at the end; `content` is what httpx takes."""
    import httpx

    request = httpx.Request("POST", server.url + path, **content)
    head = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in request.headers.items())]
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall("\r\n".join([*head, "", ""]).encode() + request.read())
        yield client


def recording(seconds: float = 6.0, seed: int = 0, kind: str = "WAV", level: float = 0.1) -> bytes:
    file = io.BytesIO()
    noise = level * np.random.default_rng(seed).standard_normal(round(24_000 * seconds))
    soundfile.write(file, noise, 24_000, format=kind, subtype="FLOAT" if level > 1 else None)
    return file.getvalue()


def uploaded(store: Any) -> list[str]:
    """Returns the names of the voices in a VoiceStore that clients brought."""
    return [voice["name"] for voice in store.listing()["data"] if voice["deletable"]]


def goes_idle(service: Any) -> bool:
    """Returns whether the service and its engine have nothing left to do within a minute."""
    return soon(lambda: service.model.stats()["calls"] == 0 and service.idle(), 60)
