"""Servers on free ports, in threads of this process, each with a model of its own."""

from __future__ import annotations

import io
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile


@dataclass
class Running:
    server: Any
    port: int

    @property
    def service(self) -> Any:
        return self.server.service

    @property
    def model(self) -> Any:
        return self.service.model

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def openai(self, **how: Any) -> Any:
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, "timeout": 60} | how)


@contextmanager
def running(folder, load, **settings):
    import asyncio

    from chatterbox_opt.serve.run import Server
    from chatterbox_opt.serve.service import Service
    from chatterbox_opt.serve.settings import ServeSettings

    started = threading.Event()
    box: list[Running] = []

    async def main() -> None:
        chosen = ServeSettings(port=0, voices_dir=folder, **{"model_id": "mini"} | settings)
        server = Server(Service(chosen), load)
        serving = asyncio.ensure_future(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        box.append(Running(server, server.servers[0].sockets[0].getsockname()[1]))
        started.set()
        await serving

    thread = threading.Thread(target=asyncio.run, args=[main()], daemon=True)
    thread.start()
    assert started.wait(60)
    one = box[0]
    try:
        yield one
    finally:
        one.server.should_exit = one.server.force_exit = True
        thread.join(60)
        assert not thread.is_alive()


def ready(one: Running) -> Running:
    until = time.monotonic() + 60
    while one.model is None:
        assert one.server.failure is None
        assert time.monotonic() < until
        time.sleep(0.02)
    return one


def load_mini() -> Any:
    from chatterbox_opt.tts import ChatterboxTTS

    return ChatterboxTTS.from_mini()


def load_tiny(family: str = "tts") -> Any:
    """Random weights that can clone; what they say is noise, and short."""
    from chatterbox_opt import ChatterboxMultilingualTTS, ChatterboxTTS, ChatterboxTurboTTS, SamplingOptions

    cls = {"tts": ChatterboxTTS, "mtl": ChatterboxMultilingualTTS, "turbo": ChatterboxTurboTTS}[family]
    model = cls.from_random(enable_watermark=False)
    model.defaults = SamplingOptions(max_new_tokens=25, cfg_weight=0.0 if family == "turbo" else 0.5)
    return model


def recording(seconds: float = 6.0, seed: int = 0, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    noise = 0.1 * np.random.default_rng(seed).standard_normal(round(24_000 * seconds))
    soundfile.write(file, noise, 24_000, format=kind)
    return file.getvalue()


def quiet_within(service: Any, seconds: float = 60) -> bool:
    """Whether the engine has nothing left to do by then."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if service.model.stats()["calls"] == 0 and service.idle():
            return True
        time.sleep(0.01)
    return False
