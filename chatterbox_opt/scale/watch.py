"""Detects an engine that hangs: nothing changes in it, though there are calls that wait."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE = 600.0  # s without progress after which an engine hangs; first calls compile, capture and try kernels
CHECKS = 20  # checks in that time
EXIT_CODE = 77  # of a process whose engine hung


def progress(model: Any) -> tuple[Any, ...]:
    """Returns figures of which at least one changes with anything that the engine does."""
    stats = model.stats()
    return tuple(stats[name] for name in ("steps", "sound_seconds", "finished", "failed", "cancelled"))


class Silence:
    """Counts checks in a row without progress while there were calls. It counts checks, and not time, so that a process
    that the system had suspended does not seem to hang."""

    def __init__(self) -> None:
        self.checks, self._progress = 0, None

    def check(self, waiting: bool, progress: Any) -> int:
        """Returns how many checks in a row, with this one, saw the same progress."""
        self.checks = self.checks + 1 if waiting and progress == self._progress else 0
        self._progress = progress
        return self.checks


class Watch:
    """Ends this process, which Ray then starts anew, if there was no progress for `seconds` though a thread waits."""

    def __init__(self, progress: Callable[[], Any], seconds: float) -> None:
        self._progress, self._seconds = progress, seconds
        self._lock = threading.Lock()
        self._waiting = self._begun = 0  # threads that wait now; waits that began since the start
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        with self._lock:
            self._waiting, self._begun = self._waiting + 1, self._begun + 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1

    def _run(self) -> None:
        silence = Silence()
        while silence.check(self._waiting > 0, (self._begun, self._progress())) < CHECKS:
            time.sleep(self._seconds / CHECKS)
        print(f"the engine did nothing for {self._seconds:g} s; the stacks of all threads:", file=sys.stderr)
        faulthandler.dump_traceback(sys.stderr)
        os._exit(EXIT_CODE)
