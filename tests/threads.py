"""Waiting, and work on other threads."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def soon(done: Callable[[], object], seconds: float = 20) -> bool:
    """Waits until `done()` is true; returns whether it was within that time."""
    until = time.monotonic() + seconds
    while not done() and time.monotonic() < until:
        time.sleep(0.002)
    return bool(done())


def in_threads(*work: Callable[[], Any]) -> list[Any]:
    """Runs each in another thread, all at the same time. Returns their results; an error is raised."""
    with ThreadPoolExecutor(len(work)) as pool:
        return list(pool.map(lambda one: one(), work))
