"""Controls OpenMP, whose workers compute torch's CPU operations. The only file that calls it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import torch

SOFT = 1  # omp_pause_soft: settings are kept


def dismiss_workers() -> None:
    """Ends the calling thread's OpenMP workers; its next parallel operation starts new ones. While two threads have
    workers, GNU's OpenMP counts more workers than processors and lets them sleep between any two operations, which
    slows down the thread that does all the work, most of all with a small network."""
    for library in _libraries():
        library.omp_pause_resource_all(SOFT)


def use_cores(count: int) -> None:
    """Makes the calling thread compute on so many cores from now on, on one without OpenMP workers; other threads are
    unaffected."""
    torch.get_num_threads()  # torch sets the count at a thread's first use, which would undo this
    for library in _libraries():
        library.omp_set_num_threads(count)


@contextmanager
def on_cores(count: int | None) -> Iterator[None]:
    """Inside, the calling thread computes on so many cores, because other threads keep the rest busy; None: on all."""
    if count is None:
        yield
        return
    before = torch.get_num_threads()
    use_cores(count)
    try:
        yield
    finally:
        use_cores(before)


def can_choose_cores() -> bool:
    return bool(_libraries())


@cache
def _libraries() -> list[ctypes.CDLL]:
    """Returns the GNU OpenMP libraries loaded into this process. Other implementations do not need this."""
    with suppress(OSError):  # /proc exists on Linux only
        lines = Path("/proc/self/maps").read_text().splitlines()
        paths = {line.split(maxsplit=5)[-1] for line in lines if "libgomp" in line}
        found = [ctypes.CDLL(path) for path in sorted(paths) if Path(path).is_file()]
        return [lib for lib in found if hasattr(lib, "omp_pause_resource_all")]
    return []
