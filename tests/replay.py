"""Captured execution without a GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from chatterbox_opt.engine.agreement import tensors
from chatterbox_opt.engine.graphs import WARM_UPS, Captured


class Replay(Captured):
    """As on a GPU, without recording: runs what would be recorded, in the same memory. Results in the memory that all
    graphs share are destroyed by the next replay of another graph."""

    def __init__(self, **how) -> None:
        super().__init__("cudagraph", torch.device("cpu"), **how)
        self._raw: dict = {}
        self._shared: dict = {}  # key -> the results in the graphs' memory

    @classmethod
    def of(cls, captured: Captured, **how) -> Replay:
        """Returns one in place of captures that a CPU does not use."""
        return cls(trial=captured.trial, kept=captured.kept, **how)

    def _record(self, key, run, again) -> None:
        for _ in range(WARM_UPS - 1):
            again(run)
        with made_inside() as made:
            self._results[key] = self._raw[key] = again(run)
        self._shared[key] = [t for t in tensors(self._raw[key]) if t.untyped_storage().data_ptr() in made]
        self._graphs[key] = run

    def _replay(self, key):
        """Returns results in the recorded memory, which the next replay overwrites."""
        for other, shared in self._shared.items():
            for t in shared if other != key else ():
                t.fill_(float("nan") if t.is_floating_point() else 1)
        kept = self._raw[key]
        for mine, new in zip(tree_leaves(kept), tree_leaves(self._graphs[key]())):
            if mine is not None:
                mine.copy_(new)
        return self._results[key]


class Watch(TorchDispatchMode):
    """Calls `see(operation, its arguments, its result)` after each operation inside."""

    def __init__(self, see: Callable[[Any, tuple, Any], object]) -> None:
        super().__init__()
        self.see = see

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.see(func, (args, kwargs), out)
        return out


def addresses(*trees: Any) -> set[int]:
    """Returns the addresses of the memory of all tensors in them."""
    return {t.untyped_storage().data_ptr() for t in tree_leaves(trees) if isinstance(t, torch.Tensor)}


@contextmanager
def made_inside() -> Iterator[set[int]]:
    """Collects the addresses of memory that operations inside allocate."""
    made: set[int] = set()
    with Watch(lambda _, given, out: made.update(addresses(out) - addresses(given))):
        yield made


def waits_for_the_device(run: Callable[[], object]) -> list[str]:
    """Returns the operations that hand numbers to the host, which end a capture."""
    found: list[str] = []

    def see(func, given, out) -> None:
        if any(name in str(func) for name in ("_local_scalar_dense", "nonzero", "item", "unique")):
            found.append(str(func))

    with Watch(see):
        run()
    return found


@contextmanager
def no_gpu() -> Iterator[None]:
    """Inside, new tensors claim to be on a GPU: they have shapes and devices, but no numbers. Tables that are cached
    meanwhile are dropped at the end, so that nothing real gets them."""
    try:
        with FakeTensorMode():
            torch.empty(4, device="cuda").uniform_()
    except RuntimeError:
        pytest.skip("this torch (2.6) asks the driver about tensors that only claim to be on a GPU")
    with FakeTensorMode(), torch.inference_mode(), torch.device("cuda"):
        yield
    for name, module in list(sys.modules.items()):
        if name.startswith("chatterbox_opt."):
            for value in vars(module).values():
                if callable(getattr(value, "cache_clear", None)):
                    value.cache_clear()


def cast(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Does what `module.to(dtype)` would, which tensors without numbers cannot."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                part._parameters[name] = torch.nn.Parameter(parameter.to(dtype), requires_grad=False)
    return module


def crossings(run: Callable[[], object]) -> list[str]:
    """Returns the operations between two devices in the second of two runs: the first makes tables, which is done
    ahead of a capture as well. Single numbers may cross."""
    found: list[str] = []

    def see(func, given, out) -> None:
        if len({t.device.type for t in tensors(given, out) if t.dim()}) > 1:
            found.append(str(func))

    run()
    with Watch(see):
        run()
    return found
