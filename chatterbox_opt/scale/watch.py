"""Notices an engine in which nothing happens any more, though somebody waits for it."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE = 600.0  # s; first calls compile, capture and try what they have captured
LOOKS = 20  # in the time after which an engine hangs
HANGS = 77  # the process's exit code


def progress(model: Any) -> tuple[Any, ...]:
    """Differs after anything that the engine has done."""
    stats = model.stats()
    return tuple(stats[name] for name in ("steps", "sound_seconds", "finished", "failed", "cancelled"))


class Silence:
    """Looks, and how many of them in a row have seen the same while somebody waited. A process that the system had
    stopped for a while has not missed any."""

    def __init__(self) -> None:
        self.looks, self._seen = 0, None

    def look(self, waiting: bool, seen: Any) -> int:
        self.looks = self.looks + 1 if waiting and seen == self._seen else 0
        self._seen = seen
        return self.looks


class Watch:
    """Ends this process, for whoever starts it anew, when those who wait have waited `seconds` for nothing."""

    def __init__(self, seen: Callable[[], Any], seconds: float) -> None:
        self._seen, self._seconds = seen, seconds
        self._lock, self._waiting, self._waits = threading.Lock(), 0, 0
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        with self._lock:
            self._waiting, self._waits = self._waiting + 1, self._waits + 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1

    def _run(self) -> None:
        silence = Silence()
        while silence.look(self._waiting > 0, (self._waits, self._seen())) < LOOKS:
            time.sleep(self._seconds / LOOKS)
        print(f"nothing has happened for {self._seconds:g} s; this is where everything stands:", file=sys.stderr)
        faulthandler.dump_traceback(sys.stderr)
        os._exit(HANGS)
