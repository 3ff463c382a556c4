"""Keeps the modes of torch that a caller has set out of what this package computes, loads and keeps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def own_modes(device: torch.device) -> Iterator[None]:
    """Inside, torch.autocast() and torch.set_default_device() of the caller do not hold: its thread may compute for
    others, and what it measures and loads is kept."""
    plain = torch.get_default_device().type == "cpu"  # torch.device() as a context slows down every operation
    with torch.autocast(device.type, enabled=False), nullcontext() if plain else torch.device("cpu"):
        yield
