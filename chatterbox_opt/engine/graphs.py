"""Captured execution: the only file that says torch.compile or CUDAGraph, with one off switch.

A `Captured` wraps one function of no arguments a key, which reads and writes tensors that stay where they are.
With mode None it just calls the function, so the eager and the captured path are the same code.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any

import torch

logger = logging.getLogger(__name__)

WARM_UPS = 2  # runs before a capture: lazy initialisation and kernel compilation may not happen inside one


class Captured:
    def __init__(self, mode: str | None, device: torch.device) -> None:
        self.mode, self.device = mode, device
        self._graphs: dict[Hashable, Any] = {}
        self._results: dict[Hashable, Any] = {}
        self._pool: Any = None

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
            self._graphs[key] = torch.compile(run, mode="reduce-overhead", dynamic=False)
            for _ in range(WARM_UPS + 1):  # the third call replays what the second recorded
                self._graphs[key]()
            return
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                run()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._results[key] = run()
        self._pool = self._pool or graph.pool()  # prepare the largest first: the others fit into its memory
        self._graphs[key] = graph
        logger.debug("captured %s", key)

    def run(self, key: Hashable, run: Callable[[], Any]) -> Any:
        """What `run` returns. A captured result is overwritten by the next replay: use it before."""
        if self.mode is None:
            return run()
        if key not in self._graphs:
            raise RuntimeError(f"{key} was not captured ahead of its use; captured are {list(self._graphs)}")
        if self.mode == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
            return self._graphs[key]()
        self._graphs[key].replay()
        return self._results[key]

    def forget(self) -> None:
        """Drop every capture, as when the memory it reads has moved."""
        self._graphs.clear()
        self._results.clear()
        self._pool = None
