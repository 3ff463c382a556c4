"""Puts each of T3's linears into the form that quantize.py has for it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

import torch
from torch import nn

from ..models.stored import StoredLinear
from ..models.t3 import T3
from .digits import without_deprecation_warning
from .quantize import Float16WeightLinear, Int4Linear, Int8Linear, Int8WeightLinear, Linear, plain_linear
from .workers import Workers

BETWEEN = 16  # linears, before the memory of the old ones is given back


def prepare_linears(t3: T3, quantize: str | None, few_rows: bool, half: bool = False) -> None:
    """In place, one at a time on each core, so that no more than these exist twice. `half`: as 16 bits on the CPU."""
    device = t3.speech_emb.weight.device
    plain = Float16WeightLinear if half else partial(plain_linear, few_rows=few_rows)
    kinds = {"int8": Int8Linear if device.type == "cpu" else Int8WeightLinear, "int4": Int4Linear, None: plain}
    with without_deprecation_warning():
        replace(own_linears([t3]), plain, device)
        replace(own_linears(t3.tfmr.modules()), kinds[quantize], device)


def own_linears(parents: Iterable[nn.Module]) -> list[tuple[nn.Module, str]]:
    """(parent, name) of the linears that lie right below each, stored ones as well."""
    kinds = (nn.Linear, StoredLinear)
    return [(parent, name) for parent in parents for name, child in parent.named_children() if type(child) in kinds]


def replace(linears: list[tuple[nn.Module, str]], kind: Callable[[Linear], nn.Module], device: torch.device) -> None:
    def one(at: tuple[nn.Module, str]) -> None:
        setattr(*at, kind(getattr(*at)))

    if device.type != "cpu":
        for at in linears:
            one(at)
        return
    workers = Workers(device)
    try:
        for i in range(0, len(linears), BETWEEN):
            for error in workers.run(one, linears[i : i + BETWEEN]):
                if error is not None:
                    raise error
            give_back_memory()  # each thread takes its memory from a part of its own
    finally:
        workers.close()


def give_back_memory() -> None:
    """glibc keeps the freed weights that lie between blocks still in use: 0.8 GB of Turbo's."""
    with suppress(OSError, AttributeError):  # of another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
