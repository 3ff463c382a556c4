"""What holds while a caller's own thread computes for this package, and what is left of it afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from .cpu_limit import threads_within_limit
from .openmp import dismiss_workers, on_cores


@contextmanager
def computing(device: torch.device) -> Iterator[None]:
    """Inside, torch.autocast() and torch.set_default_device() of the caller do not hold: its thread may compute for
    others, and what it measures and loads is kept. It computes on no more cores than a container has time for.
    Afterwards the thread has no OpenMP workers, which would slow down the thread that computes next: a model is often
    loaded in one thread and called in others."""
    # torch.device() as a context slows down every operation, so it is set only where the caller has set another.
    # torch 2.6's get_default_device() does not see such contexts; a tensor made here does.
    plain = torch.empty(0).device.type == "cpu"
    try:
        with (
            torch.autocast(device.type, enabled=False),
            nullcontext() if plain else torch.device("cpu"),
            on_cores(threads_within_limit(torch.get_num_threads())),
        ):
            yield
    finally:
        dismiss_workers()
