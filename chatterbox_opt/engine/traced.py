"""T3's networks on a CPU as one TorchScript call per step: the same operations on the same numbers, without Python
between them. A step of one row is a thousand operations of a few microseconds, of which Python took about half.

torch calls torch.jit.trace deprecated; where it is gone, or its result is not the eager one to the last bit, the step
stays eager.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..models.t3 import T3
from .cache import DecodeEach

logger = logging.getLogger(__name__)

USES = 24  # of a batch's shape before it is traced: by then eager steps have lost about what a trace takes
MOST = 64  # traces kept


class TracedT3:
    """T3 and its head for one position per row. A trace is valid for one list of rows per utterance, because DecodeEach
    attends to each utterance separately; positions may change."""

    def __init__(self, t3: T3, eager: Callable[[Tensor, Tensor, DecodeEach], Tensor], on: bool) -> None:
        """`eager` is what is traced: x (rows, 1, D) at positions (rows, 1) -> logits (rows, V) of `t3`."""
        self.t3, self.eager, self.on = t3, eager, on
        self.uses: Counter[tuple[int, ...]] = Counter()
        self._traces: dict[tuple[int, ...], torch.jit.ScriptModule] = {}

    @property
    def keys(self) -> list[tuple[int, ...]]:
        return list(self._traces)

    def __call__(self, x: Tensor, positions: Tensor, each: DecodeEach) -> Tensor:
        key = tuple(each.widths)
        if self.on and key not in self._traces:
            self.uses[key] += 1
            if self.uses[key] > USES:
                self.prepare(x, positions, each)
        if key not in self._traces:
            return self.eager(x, positions, each)
        with torch.jit.optimized_execution(False):  # of this thread: an optimized graph may round differently
            return self._traces[key](x, positions, each.layers)

    def prepare(self, x: Tensor, positions: Tensor, each: DecodeEach) -> None:
        """Traces this batch's shape, and compares the trace with an eager run: both write the same keys and values."""
        key = tuple(each.widths)
        if not self.on or key in self._traces:
            return
        try:
            wanted = self.eager(x, positions, each)
            with without_trace_warnings():
                traced = torch.jit.trace(_Step(self, each), (x, positions, each.layers), check_trace=False)
            with torch.jit.optimized_execution(False):
                same = torch.equal(traced(x, positions, each.layers), wanted)
            if not same and wanted.isfinite().all():
                raise RuntimeError("a trace does not compute what it was made from")
        except Exception as problem:
            self.on = False
            self._traces.clear()
            reason = str(problem).strip().split("\n")[0][:200]
            logger.warning("tracing T3's step was given up, it runs eagerly: %s: %s", type(problem).__name__, reason)
            return
        while len(self._traces) >= MOST:
            self._traces.pop(next(iter(self._traces)))
        self._traces[key] = traced


class _Step(nn.Module):
    """What is traced. It holds T3's tensors and packed weights itself, but not its modules: torch takes four times as
    long to convert a few hundred of these as to trace them."""

    def __init__(self, owner: TracedT3, each: DecodeEach) -> None:
        super().__init__()
        object.__setattr__(self, "owner", owner)  # not a submodule
        object.__setattr__(self, "each", each)
        net = owner.t3
        for i, tensor in enumerate([*net.parameters(), *net.buffers()]):
            self.register_buffer(f"tensor{i}", tensor.detach())
        for part in net.modules():
            for name, value in vars(part).items():
                if isinstance(value, torch.ScriptObject):
                    setattr(self, f"{name}{id(value)}", value)

    def forward(self, x: Tensor, positions: Tensor, layers: list[list[tuple[Tensor, Tensor, Tensor]]]) -> Tensor:
        return self.owner.eager(x, positions, self.each.with_layers(layers))


@contextmanager
def without_trace_warnings() -> Iterator[None]:
    """Suppresses that tracing is deprecated, and that sizes become constants, as the number of rows may."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        yield
