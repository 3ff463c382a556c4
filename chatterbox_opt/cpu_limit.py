"""How many processors' time the process may use: containers are limited by control groups, which no thread count of
torch knows of. A limit of two on a machine of sixteen stops all sixteen threads for most of every tenth of a second."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

GROUPS, MOUNTED = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


@cache
def cpu_limit() -> float | None:
    """Returns the smallest limit of the process's control groups in processors; None: there is none."""
    with suppress(OSError, ValueError):  # a group's name may be in another encoding
        return min(_limits(GROUPS.read_text(), MOUNTED), default=None)
    return None


def threads_within_limit(threads: int) -> int | None:
    """Returns how many of so many threads the limit has time for, None if for all of them."""
    limit = cpu_limit()
    allowed = threads if limit is None else max(1, math.ceil(limit))
    return allowed if allowed < threads else None


def _limits(groups: str, mounted: Path) -> Iterator[float]:
    """`groups`: lines of hierarchy:controllers:path, of the first version of control groups with `cpu` among the
    controllers, of the second with none. Inside a container a path may be the host's, and the mounted root be its
    own group: what does not exist is skipped."""
    for line in groups.splitlines():
        _, _, named = line.partition(":")
        controllers, colon, path = named.partition(":")
        if not colon:
            continue
        if not controllers:
            roots, read = [mounted, mounted / "unified"], _second
        elif "cpu" in controllers.split(","):
            roots, read = [mounted / controllers, mounted / "cpu"], _first
        else:
            continue
        for root in roots:
            group = root / path.strip("/")
            for folder in (group, *group.parents):
                with suppress(OSError, ValueError, ZeroDivisionError):
                    yield read(folder)
                if folder == root:
                    break


def _first(folder: Path) -> float:
    quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    if quota <= 0 or period <= 0:
        raise ValueError("unlimited")
    return quota / period


def _second(folder: Path) -> float:
    quota, period = (folder / "cpu.max").read_text().split()
    return int(quota) / int(period)  # "max" is no number: a ValueError
