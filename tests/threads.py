"""Waiting, and work on other threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def soon(done: Callable[[], object], seconds: float = 20) -> bool:
    """Waits until `done()` is true; returns whether it came to be in that time."""
    until = time.monotonic() + seconds
    while not done() and time.monotonic() < until:
        time.sleep(0.002)
    return bool(done())


def on_a_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
