"""Captured execution: the only file that says torch.compile or CUDAGraph, with one off switch.

A `Captured` wraps one function of no arguments a key, which reads and writes tensors that stay where they are.
With mode None it just calls the function, so the eager and the captured path are the same code.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any

import torch

logger = logging.getLogger(__name__)

# A process records one graph at a time: a recording ends with any wait for the whole device, and each begins with one.
recording = threading.RLock()
MOST_KEYS = 256  # of one function
WARM_UPS = 2  # runs before a capture: lazy initialisation and kernel compilation may not happen inside one


class Captured:
    def __init__(self, mode: str | None, device: torch.device, stream: Any = None) -> None:
        self.mode, self.device = mode, device
        self._graphs: dict[Hashable, Any] = {}
        self._results: dict[Hashable, Any] = {}
        self._pool: Any = None
        self._stream = stream

    @property
    def on(self) -> bool:
        return self.mode is not None

    def ready(self, key: Hashable) -> bool:
        return self.mode is None or key in self._graphs

    def prepare(self, key: Hashable, run: Callable[[], Any]) -> None:
        """Capture `run` under `key`. Runs it a few times: call before its tensors hold anything of value."""
        if self.ready(key):
            return
        if self.mode == "reduce-overhead":
            run()  # tables that are made at first use are no part of what is compiled
            run = compiled(run)
        if self.device.type != "cuda":  # nothing to record there: the compiled function is all there is
            run()
            self._graphs[key] = run
            return
        with torch.cuda.device(self.device), recording:
            try:
                self._record(key, run)
            except BaseException:
                give_up_recording(self.device)
                raise
        logger.debug("captured %s", key)

    def _record(self, key: Hashable, run: Callable[[], Any]) -> None:
        # One side stream for all of these: cuBLAS keeps a workspace for every stream it ever saw, graphs of one stream
        # share it and may not run at once, and torch's own choice belongs to the first device that captured.
        self._stream = self._stream or torch.cuda.Stream()
        here, side = torch.cuda.current_stream(), self._stream
        side.wait_stream(here)
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                run()
        here.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # thread_local: what another thread allocates or launches meanwhile does not spoil the capture
        with torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local"):
            self._results[key] = run()
        self._pool = self._pool or graph.pool()  # prepare the largest first: the others fit into its memory
        self._graphs[key] = graph

    def run(self, key: Hashable, run: Callable[[], Any]) -> Any:
        """What `run` returns. A captured result is overwritten by the next replay: use it before."""
        if self.mode is None:
            return run()
        if key not in self._graphs:
            raise RuntimeError(f"{key} was not captured ahead of its use; captured are {list(self._graphs)}")
        if self.device.type != "cuda":
            return self._graphs[key]()
        self._graphs[key].replay()
        return self._results[key]

    def forget(self) -> None:
        """Drop every capture, as when the memory it reads has moved."""
        with recording:
            self._graphs.clear()
            self._results.clear()
            self._pool = None


def give_up_recording(device: torch.device) -> None:
    """A recording that fails leaves torch's global generator marked as being recorded, and no draw possible."""
    index = torch.cuda.current_device() if device.index is None else device.index
    with suppress(AttributeError, RuntimeError):  # what made the recording fail is what is to be heard of
        generator = torch.cuda.default_generators[index]
        generator.graphsafe_set_state(generator.clone_state())


def bucket(rows: int) -> int:
    """Captured batches have 1, 2, 4, 8... rows."""
    return 1 << (rows - 1).bit_length()


def compiled(run: Callable[[], Any]) -> Callable[[], Any]:
    """torch.compile's fused kernels without its own graph trees: those belong to the thread that made them, while
    requests come from any. "reduce-overhead" is these kernels recorded in our graph."""

    def call() -> Any:
        # Every key compiles the same code anew; the default allows eight, then runs eagerly without a word.
        with torch._dynamo.config.patch(cache_size_limit=MOST_KEYS, accumulated_cache_size_limit=8 * MOST_KEYS):
            return fused()

    fused = torch.compile(run, dynamic=False)
    return call
