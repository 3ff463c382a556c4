"""Measures time and memory, after synchronizing the device."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch


def synchronize(device: str | torch.device) -> None:
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def repeated(call: Callable[[], Any], device: str | torch.device, repeats: int) -> list[float]:
    """Returns the seconds of each of `repeats` calls."""
    runs = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        runs.append(time.perf_counter() - start)
    return runs


def quickest(call: Callable[[], Any], device: str | torch.device, repeats: int = 5) -> float:
    return min(repeated(call, device, repeats + 1)[1:])


def drop_workspaces(device: torch.device) -> None:
    """Frees the workspaces that torch keeps per stream. Not while there are graphs that may use them."""
    if device.type == "cuda":
        with suppress(AttributeError):
            torch._C._cuda_clearCublasWorkspaces()


def held_bytes(device: torch.device) -> int | None:
    """Returns the bytes of tensors on a GPU, or of this process on a CPU; None if unknown."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return 1024 * int(line.split()[1])
    return None
