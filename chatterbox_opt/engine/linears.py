"""Replaces T3's linear layers by the form of quantize.py that suits options and device."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

import torch
from torch import nn

from ..models.stored import StoredLinear
from ..models.t3 import T3
from .digits import ignore_deprecation_warning
from .quantize import Float16WeightLinear, Int4Linear, Int8Linear, Int8WeightLinear, SourceLinear, plain_linear
from .workers import Workers

BATCH = 16  # layers replaced before freed memory goes back to the system


def prepare_linears(t3: T3, quantize: str | None, few_rows: bool, half: bool = False) -> None:
    """Replaces T3's linear layers, one at a time per core, so that only these are in memory twice. `quantize` is None,
    "int8" or "int4"; `few_rows` is options.few_rows; `half` asks for 16-bit weights on a CPU."""
    device = t3.speech_emb.weight.device
    plain = Float16WeightLinear if half else partial(plain_linear, few_rows=few_rows)
    kinds = {"int8": Int8Linear if device.type == "cpu" else Int8WeightLinear, "int4": Int4Linear, None: plain}
    ignore_deprecation_warning()
    replace(own_linears([t3]), plain, device)
    replace(own_linears(t3.tfmr.modules()), kinds[quantize], device)


def own_linears(parents: Iterable[nn.Module]) -> list[tuple[nn.Module, str]]:
    """Returns (parent, name) of the linear layers directly below each parent, stored ones included."""
    kinds = (nn.Linear, StoredLinear)
    return [(parent, name) for parent in parents for name, child in parent.named_children() if type(child) in kinds]


def replace(
    linears: list[tuple[nn.Module, str]], kind: Callable[[SourceLinear], nn.Module], device: torch.device
) -> None:
    """Replaces each (parent, name) by what `kind` makes of it."""

    def replace_one(place: tuple[nn.Module, str]) -> None:
        setattr(*place, kind(getattr(*place)))

    if device.type != "cpu":
        for place in linears:
            replace_one(place)
        return
    workers = Workers(device)
    try:
        for i in range(0, len(linears), BATCH):
            for error in workers.run(replace_one, linears[i : i + BATCH]):
                if error is not None:
                    raise error
            give_back_memory()  # each thread has an arena of its own
    finally:
        workers.close()


def give_back_memory() -> None:
    """Returns freed memory to the system: glibc keeps what lies between blocks in use, 0.8 GB with Turbo."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
