"""The one place that talks to OpenMP, which multiplies on the CPU."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

SOFT = 1  # omp_pause_soft: settings stay


def dismiss_workers() -> None:
    """The calling thread's OpenMP workers go; it gets new ones when it multiplies again. As long as two threads have
    workers of their own, GNU's OpenMP sees more of them than processors and lets them sleep between any two operations:
    the thread that does all the work is slow then, most of all with a small network."""
    for library in _libraries():
        library.omp_pause_resource_all(SOFT)


def multiply_alone() -> None:
    """From now on the calling thread multiplies without workers, whatever the others do."""
    torch.get_num_threads()  # torch's own setting, made at a thread's first use, would undo this
    for library in _libraries():
        library.omp_set_num_threads(1)


def can_multiply_alone() -> bool:
    return bool(_libraries())


@cache
def _libraries() -> list[ctypes.CDLL]:
    """GNU's, as loaded into this process. Others have no such habit."""
    with suppress(OSError):  # no /proc but on Linux
        lines = Path("/proc/self/maps").read_text().splitlines()
        paths = {line.split(maxsplit=5)[-1] for line in lines if "libgomp" in line}
        found = [ctypes.CDLL(path) for path in sorted(paths) if Path(path).is_file()]
        return [lib for lib in found if hasattr(lib, "omp_pause_resource_all")]
    return []
