"""Threads that each work on a share of a CPU's cores, with two cores on one each, without OpenMP workers. Cores that
share one rendering wait for each other at every operation, which for a small network costs more than it gains."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from ..openmp import can_choose_cores, dismiss_workers, use_cores

NAME = "chatterbox-render"  # of the threads


class Workers:
    def __init__(self, device: torch.device, at_once: int | None = None) -> None:
        several = device.type == "cpu" and can_choose_cores()
        self.count = at_once or (torch.get_num_threads() if several else 1)
        self._pool: ThreadPoolExecutor | None = None

    def start(self, work: Callable[[Any], None], item: Any, cores: int = 1) -> Future[Exception | None]:
        """Calls `work` with the item on another thread and so many cores; the result is what it raised."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.count, NAME)
        result: Future[Exception | None] = Future()
        first = threading.Lock()  # whoever gets it does the work

        def once(cores: int | None) -> None:
            if not first.acquire(blocking=False):
                return
            try:
                result.set_result(outcome(work, item, cores))
            except BaseException as error:
                result.set_exception(error)
                raise

        try:
            self._pool.submit(once, cores)
        except RuntimeError:
            # At the end of the main thread pools take nothing more, while other threads go on. Where no thread can be
            # started, the pool has taken it all the same, and a thread that was there already may come first.
            once(None)
        return result

    def run(self, work: Callable[[Any], None], items: Sequence[Any]) -> list[Exception | None]:
        """Calls `work` with each item and returns what each raised. A single item runs on this thread and all cores."""
        if len(items) == 1:
            return [outcome(work, items[0])]
        return [future.result() for future in [self.start(work, item) for item in items]]

    def close(self, wait: bool = True) -> None:
        """Threads end after what they were given, and work given later is done here. `wait`: until they have ended,
        unless this is one of them."""
        if self._pool is not None:
            self._pool.shutdown(wait and not threading.current_thread().name.startswith(NAME))


def outcome(work: Callable[[Any], None], item: Any, cores: int | None = None) -> Exception | None:
    if cores is not None:
        use_cores(cores)
    try:
        with torch.inference_mode():
            work(item)
    except Exception as error:
        return error
    finally:
        if cores is not None:
            dismiss_workers()  # of a thread that may have nothing more to do
    return None
