"""Controls the threads that compute torch's CPU operations: OpenMP's workers, and how many of them MKL uses. The only
file that calls these libraries."""

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
    _set_product_cores(count)


@contextmanager
def on_cores(count: int | None) -> Iterator[None]:
    """Inside, the calling thread computes on so many cores, because other threads keep the rest busy; None: on all."""
    if count is None or not can_choose_cores():
        yield
        return
    before, products = torch.get_num_threads(), _set_product_cores(count)
    use_cores(count)
    try:
        yield
    finally:
        use_cores(before)
        _set_product_cores(products)


def can_choose_cores() -> bool:
    return bool(_libraries())


def product_cores() -> int | None:
    """Returns on how many cores this thread computes products by MKL, None where torch has no MKL."""
    mkl = _mkl()
    return None if mkl is None else mkl.MKL_Get_Max_Threads()


def _set_product_cores(count: int) -> int:
    """torch.set_num_threads() gives MKL a number for the process, which precedes OpenMP's of a thread; this precedes
    both. 0 takes it back. Returns what this thread had."""
    mkl = _mkl()
    return 0 if mkl is None else mkl.MKL_Set_Num_Threads_Local(count)


@cache
def _libraries() -> list[ctypes.CDLL]:
    """Returns the GNU OpenMP libraries loaded into this process. Other implementations do not need this."""
    return [lib for lib in _loaded("libgomp") if hasattr(lib, "omp_pause_resource_all")]


@cache
def _mkl() -> ctypes.CDLL | None:
    """Returns the library that has torch's MKL: its own, or one beside it. NumPy may have loaded another MKL."""
    found = [*_loaded("libtorch_cpu"), *_loaded("libmkl")]
    return next((lib for lib in found if hasattr(lib, "MKL_Set_Num_Threads_Local")), None)


def _loaded(name: str) -> list[ctypes.CDLL]:
    with suppress(OSError):  # /proc exists on Linux only
        lines = Path("/proc/self/maps").read_text().splitlines()
        paths = {line.split(maxsplit=5)[-1] for line in lines if name in line}
        return [ctypes.CDLL(path) for path in sorted(paths) if Path(path).is_file()]
    return []
