"""Functions as one TorchScript call on a CPU: the same operations on the same numbers, without Python between them. A
step of T3 with one row is a thousand operations of a few microseconds, of which Python takes a good part; and threads
that render side by side wait for each other's Python.

torch calls torch.jit.trace deprecated. Where it is gone, or its result is not the eager one to the last bit, a function
stays eager.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

USES = 24  # of a key before it is traced: by then eager calls have lost about what a trace takes
MOST = 64  # traces of one function kept, the newest
MOST_COUNTED = 1024  # keys: with 16 slots of one row or two there are 2**16 lists of rows

_tracing = threading.RLock()  # torch notes in one place for the process what it traces


class Traced:
    def __init__(self, name: str, net: nn.Module, on: bool) -> None:
        """`net` has all weights that the function uses."""
        self.name, self.net, self.on = name, net, on
        self.uses: Counter[Hashable] = Counter()
        self._traces: dict[Hashable, torch.jit.ScriptModule] = {}

    @property
    def keys(self) -> list[Hashable]:
        return list(self._traces)

    def __call__(self, key: Hashable, run: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """Returns run(*inputs), where the inputs are tensors or lists of tensors. With equal keys, `run` does the same
        operations whatever the tensors' contents and lengths are."""
        if self.on and key not in self._traces:
            if len(self.uses) >= MOST_COUNTED:
                self.uses.clear()
            self.uses[key] += 1
            if self.uses[key] > USES:
                self.prepare(key, run, *inputs)
        traced = self._traces.get(key)
        if traced is None:
            return run(*inputs)
        with torch.jit.optimized_execution(False):  # in this thread: an optimized graph may round differently
            return traced(*inputs)

    def prepare(self, key: Hashable, run: Callable[..., Tensor], *inputs: Any) -> None:
        """Traces `run` and compares the trace with it. What `run` writes, it must write again when called again."""
        with _tracing:
            if not self.on or key in self._traces:
                return
            wanted = run(*inputs)  # outside of the try: its own errors are no reason to give up tracing
            try:
                ignore_trace_warnings()
                traced = torch.jit.trace(_Weights(self.net, run), inputs, check_trace=False)
                with torch.jit.optimized_execution(False):
                    got = traced(*inputs)
                if not torch.equal(got.nan_to_num(), wanted.nan_to_num()):
                    raise RuntimeError("a trace does not compute what it was made from")
            except Warning:  # the program makes errors of warnings, perhaps for a while
                self.uses.pop(key, None)
                return
            except Exception as problem:
                self.on = False
                self._traces = {}
                reason = f"{type(problem).__name__}: {problem}".split("\n")[0][:200]
                logger.warning("tracing %s was given up, it runs eagerly: %s", self.name, reason)
                return
            self.uses.pop(key, None)
            kept = list(self._traces.items())[-(MOST - 1) :] if MOST > 1 else []
            self._traces = dict(kept) | {key: traced}  # other threads read the old one meanwhile


class _Weights(nn.Module):
    """What is traced: the function, beside the network's tensors and packed weights, but not its modules. torch takes
    longer to convert a few hundred of these than to trace them."""

    def __init__(self, net: nn.Module, run: Callable[..., Tensor]) -> None:
        super().__init__()
        object.__setattr__(self, "run", run)  # a bound method of a module would make that a part of this one
        for i, tensor in enumerate([*net.parameters(), *net.buffers()]):
            self.register_buffer(f"tensor{i}", tensor.detach())
        for part in net.modules():
            for name, value in vars(part).items():
                if isinstance(value, torch.ScriptObject):
                    setattr(self, f"{name}{id(value)}", value)

    def forward(self, *inputs: Any) -> Tensor:
        return self.run(*inputs)


def ignore_trace_warnings() -> None:
    """Suppresses that tracing is deprecated, and that sizes become constants here, as the number of rows may. For good:
    filters are the process's, and to put them back afterwards would undo what other threads set meanwhile."""
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.trace(_method)?` is ", category=category)
    warnings.filterwarnings("ignore", category=torch.jit.TracerWarning, module=r"chatterbox_opt\.")
