"""torch.cuda without a GPU: streams, events and recordings that only note calls."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch


class Stream:
    def __init__(self, device=None) -> None:
        self.device, self.waited, self.cuda_stream = device, [], id(self)

    def wait_event(self, event) -> None:
        self.waited.append(event)

    def synchronize(self) -> None:
        pass


class Event:
    stream = None

    def record(self, stream) -> None:
        self.stream = stream


class FakeCuda:
    """`notes` of calls; `broken`: recordings cannot be ended, as after an operation that is not allowed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.notes: list[tuple] = []
        self.caller = self.stream = Stream()
        self.index, self.pools, self.broken = 0, 0, False
        for name in ("device", "graph", "graph_pool_handle", "synchronize"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, f"_{name}"))
        for name, value in dict(
            Stream=Stream, Event=Event, CUDAGraph=lambda: self, current_stream=lambda device=None: self.stream,
            stream=self._on, current_device=lambda: self.index, empty_cache=lambda: None,
            default_generators=[None, None],
        ).items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)
        note = lambda name: lambda *args: self.notes.append((name, *args))  # noqa: E731
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", note("end"), raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", note("release"), raising=False)

    def replay(self) -> None:
        self.notes.append(("replay", self.stream))

    def reset(self) -> None:
        self.notes.append(("reset",))

    def _synchronize(self, device=None) -> None:
        self.notes.append(("synchronize", self.index))

    def _graph_pool_handle(self) -> tuple[int, int]:
        self.pools += 1
        return 0, self.pools

    @contextmanager
    def _device(self, device):
        before, self.index = self.index, torch.device(device).index
        yield
        self.index = before

    @contextmanager
    def _on(self, stream):
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    @contextmanager
    def _graph(self, graph, pool, stream, capture_error_mode):
        """As in torch: if the end of a recording raises, its stream stays the current one."""
        before, self.stream = self.stream, stream
        self.notes.append(("record", self.index, stream, pool))
        try:
            yield
        finally:
            if self.broken:
                raise RuntimeError("operation failed due to a previous error during capture")
            self.stream = before


@pytest.fixture
def fake_cuda(monkeypatch):
    return FakeCuda(monkeypatch)
