"""Lets one thread at a time use a device that cannot be used by several."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext

import torch

ONE_THREAD = {"mps"}  # torch on MPS is reported to crash when two threads use it at once (pytorch #197805)


class FairLock:
    """A lock that its holder may take again. A waiting thread comes before one that has just released it: the engine
    releases it between two steps only."""

    def __init__(self) -> None:
        self._next, self._lock = threading.Lock(), threading.Lock()
        self._holder: int | None = None  # ident of a thread
        self._times = 0  # that its holder has taken it

    @property
    def held_here(self) -> bool:
        """Whether this thread holds it."""
        return self._holder == threading.get_ident()

    def __enter__(self) -> None:
        if not self.held_here:
            with self._next:
                self._lock.acquire()
            self._holder = threading.get_ident()
        self._times += 1

    def __exit__(self, *_: object) -> None:
        self._times -= 1
        if not self._times:
            self._holder = None
            self._lock.release()


_lock = FairLock()  # one for the process, as the device's queue is one for all models


def device_lock(device: torch.device) -> AbstractContextManager[None]:
    """Inside, no other thread that calls this uses the device, if it is one of ONE_THREAD."""
    return _lock if device.type in ONE_THREAD else nullcontext()


def holds_device(device: torch.device) -> bool:
    """Whether this thread is inside device_lock(), and so no other can use the device."""
    return device.type in ONE_THREAD and _lock.held_here
