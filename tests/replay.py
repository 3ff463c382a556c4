"""Captured execution without a GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from chatterbox_opt.engine.graphs import WARM_UPS, Captured


class Replay(Captured):
    """As on a GPU, but for the recording: runs what would be recorded, in the memory it would be recorded with."""

    def __init__(self, **how) -> None:
        super().__init__("cudagraph", torch.device("cpu"), **how)
        self._raw: dict = {}

    @classmethod
    def of(cls, captured: Captured, **how) -> Replay:
        """In the place of one that a CPU does without."""
        return cls(trial=captured.trial, kept=captured.kept, **how)

    def _record(self, key, run, again) -> None:
        for _ in range(WARM_UPS):
            self._results[key] = self._raw[key] = again(run)
        self._graphs[key] = run

    def _replay(self, key):
        """In the memory of the recorded result, which the next replay overwrites."""
        kept = self._raw[key]
        for mine, new in zip(tree_leaves(kept), tree_leaves(self._graphs[key]())):
            if mine is not None:
                mine.copy_(new)
        return self._results[key]


@contextmanager
def no_gpu() -> Iterator[None]:
    """Within, what is made claims to be on a GPU: shapes and devices without numbers. Tables that were kept meanwhile
    are dropped behind it, as a real GPU would be given them."""
    with FakeTensorMode(), torch.inference_mode(), torch.device("cuda"):
        yield
    for name, module in list(sys.modules.items()):
        if name.startswith("chatterbox_opt."):
            for value in vars(module).values():
                if callable(getattr(value, "cache_clear", None)):
                    value.cache_clear()


def cast(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """As `module.to(dtype)`, which tensors without numbers cannot do."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                part._parameters[name] = torch.nn.Parameter(parameter.to(dtype), requires_grad=False)
    return module


def crossings(run: Callable[[], object]) -> list[str]:
    """Operations between two devices in the second of two runs: the first makes tables, which is done ahead of a
    capture as well. Single numbers may cross."""
    found: list[str] = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor) and t.dim()]
            if len({t.device.type for t in tensors}) > 1:
                found.append(str(func))
            return out

    run()
    with Spy():
        run()
    return found
