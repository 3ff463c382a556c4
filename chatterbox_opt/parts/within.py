"""What a call gives to the parts below it past a program's own method, which knows nothing of seeds and cancelling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from ..engine.noise import RequestNoise


@dataclass(frozen=True)
class Within:
    noise: RequestNoise | None = None  # None: torch's global generators
    cancel: Any = None
    progress: Callable[[int, int], None] | None = None


NOTHING = Within()
_current: ContextVar[Within] = ContextVar("within", default=NOTHING)  # of this thread: others make calls of their own


def current() -> Within:
    return _current.get()


@contextmanager
def within(call: Within) -> Iterator[None]:
    before = _current.set(call)
    try:
        yield
    finally:
        _current.reset(before)
