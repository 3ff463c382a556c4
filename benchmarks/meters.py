"""Clocks and memory, synchronised, for both sides of a comparison. Needs torch, but not this package."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def synchronize(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(torch.device(device))
    elif device.startswith("mps"):
        torch.mps.synchronize()


def timed(call: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Returns (seconds, result). Earlier work of the device is not counted."""
    synchronize(device)
    start = time.perf_counter()
    result = call()
    synchronize(device)
    return time.perf_counter() - start, result


def repeated(call: Callable[[], Any], device: str, repeats: int) -> list[float]:
    """Returns the seconds of each of `repeats` calls."""
    return [timed(call, device)[0] for _ in range(repeats)]


def watch(owner: Any, method: str, device: str, seconds: dict[str, float], stage: str) -> None:
    """Replaces a bound method by one that adds its time to seconds[stage]."""
    inner = getattr(owner, method)

    def outer(*args: Any, **kwargs: Any) -> Any:
        spent, result = timed(lambda: inner(*args, **kwargs), device)
        seconds[stage] = seconds.get(stage, 0.0) + spent
        return result

    setattr(owner, method, outer)


# ---- memory --------------------------------------------------------------------------------------


def memory(device: str) -> dict[str, float]:
    """Returns MB: resident now, the resident peak since `reset_peak`, and the peak of the device's allocator."""
    import torch

    status = _status()
    record = {"rss_mb": status.get("VmRSS", 0) / 1000, "peak_rss_mb": status.get("VmHWM", 0) / 1000}
    if not status:
        import resource

        record["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS
    if device.startswith("cuda"):
        record["vram_mb"] = torch.cuda.memory_allocated(device) / 1e6
        record["peak_vram_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
    return record


def _status() -> dict[str, float]:
    """Returns the kB of every Vm line of /proc/self/status; empty if there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if line.startswith("Vm"))
    return {name: float(value.split()[0]) * 1.024 for name, value in pairs}


def reset_peak(device: str) -> None:
    import torch

    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets the resident peak
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def free(device: str) -> None:
    import torch

    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
