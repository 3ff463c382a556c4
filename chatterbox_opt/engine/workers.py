"""Threads that each work on one core of a CPU, without OpenMP workers. Cores that share one rendering wait for each
other at every operation, which for a small network costs more than it gains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from .openmp import can_multiply_alone, multiply_alone


class Workers:
    def __init__(self, device: torch.device, at_once: int | None = None) -> None:
        several = device.type == "cpu" and can_multiply_alone()
        self.count = at_once or (torch.get_num_threads() if several else 1)
        self._pool: ThreadPoolExecutor | None = None

    def start(self, work: Callable[[object], None], item: object) -> Future[Exception | None]:
        """Calls `work` with the item on another thread; the result is what it raised."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.count, "chatterbox-render", initializer=multiply_alone)
        return self._pool.submit(outcome, work, item)

    def run(self, work: Callable[[object], None], items: Sequence[object]) -> list[Exception | None]:
        """Calls `work` with each item and returns what each raised. A single item runs on this thread and all cores."""
        if len(items) == 1:
            return [outcome(work, items[0])]
        return [future.result() for future in [self.start(work, item) for item in items]]

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def outcome(work: Callable[[object], None], item: object) -> Exception | None:
    try:
        with torch.inference_mode():
            work(item)
    except Exception as error:
        return error
    return None
