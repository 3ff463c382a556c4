"""The tensors that graphs read and write, made once per shape."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

from .graphs import Captured

Key = TypeVar("Key", bound=Hashable)
Tensors = TypeVar("Tensors")


def held(
    kept: dict[Key, Tensors | None], key: Key, captured: Captured, make: Callable[[], Tensors | None]
) -> Tensors | None:
    """Returns kept[key]. The first time, `make` makes the tensors and captures their graphs; None stands for what could
    not be captured, by its word or for want of memory."""
    if key not in kept and captured.on and captured.closed is None:
        made = None
        with captured.within_memory(key):
            made = make()
        kept[key] = made
    return kept.get(key)
