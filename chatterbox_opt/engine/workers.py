"""Renders several utterances in parallel on a CPU, each on one thread without OpenMP workers. Cores that share one
rendering wait for each other at every operation, which for a small network costs more than it gains."""

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

    def run(self, work: Callable[[object], None], items: Sequence[object]) -> list[BaseException | None]:
        """Calls `work` with each item and returns what each raised. A single item runs on this thread and all cores."""
        if len(items) == 1:
            return [_outcome(work, items[0])]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.count, "chatterbox-render", initializer=multiply_alone)
        futures: list[Future] = [self._pool.submit(_outcome, work, item) for item in items]
        return [future.result() for future in futures]

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def _outcome(work: Callable[[object], None], item: object) -> Exception | None:
    try:
        with torch.inference_mode():
            work(item)
    except Exception as error:
        return error
    return None
