"""What a model's three parts have in common."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import _IncompatibleKeys

from ..engine.resolve import indexed
from ..weights.layout import Layout

logger = logging.getLogger(__name__)


class Part(ABC):
    """A network of a loaded model, which works through the model's engine and encoders, beside all other calls. What is
    not defined here is the network's own. Where it computes, and in which precision, was chosen when it was loaded."""

    named = ""  # in messages: the attribute of the model
    called: tuple[str, ...] = ()  # methods that generate() calls once they are replaced
    device: torch.device

    @property
    @abstractmethod
    def network(self) -> Any:
        """The network itself, as this package has it."""

    @abstractmethod
    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        """Takes the weights of a file of chatterbox-tts, or of a fine-tuned one, once nothing is being spoken. `assign`
        is there for its position: nothing is shared with `state_dict` that the engine keeps in another form."""

    @abstractmethod
    def take(self, network: Any) -> None:
        """What `model.t3 = network` does: becomes another network, of this package or of chatterbox-tts."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # of copy and pickle, before there is a network
            raise AttributeError(name)
        return getattr(self.network, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if getattr(value, "__self__", None) is self and getattr(value, "__name__", None) == name:
            vars(self).pop(name, None)  # its own method is put back
            return
        super().__setattr__(name, value)
        if not name.startswith("_") and self.replaces(name):
            seen = "generate() calls it, a piece at a time; batches and streams do not"
            self._tell(f"{name} was replaced", f"%s: {seen if name in self.called else 'no call of the model uses it'}")

    def replaces(self, *names: str) -> bool:
        """Whether a program has put something of its own in the place of one of these methods."""
        return any(name in vars(self) and callable(getattr(type(self), name, None)) for name in names)

    def _tell(self, what: str, text: str) -> None:
        """Warns once: programs move parts out of a GPU and back around every request."""
        told = vars(self).setdefault("_told", set())
        if what not in told:
            told.add(what)
            logger.warning(f"model.{self.named}.{text}", what)

    # ---- of nn.Module ------------------------------------------------------------------------------

    def eval(self) -> Part:
        return self

    def train(self, mode: bool = True) -> Part:
        if mode:
            self._tell("train()", "%s: it speaks and does not learn; train with chatterbox-tts")
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Part:
        return self

    def to(self, *args: Any, **kwargs: Any) -> Part:
        """Changes nothing, and says so if anything else was asked for."""
        device, dtype = _asked(*args, **kwargs)
        if device is not None and indexed(device) != indexed(self.device):
            self._tell(f"to({str(device)!r})", f"%s: it stays on {self.device}, for which it was loaded")
        if dtype is not None and dtype != self.dtype:
            self._tell(f"to({dtype})", "%s: it stays in the precision it was loaded with, by default the device's "
                       "quickest; EngineOptions(dtype=..., s3gen_dtype=...) chooses another")
        return self

    def cpu(self) -> Part:
        return self.to("cpu")

    def cuda(self, device: Any = None) -> Part:
        return self.to("cuda" if device is None else torch.device("cuda", torch.device(device).index or 0))

    def half(self) -> Part:
        return self.to(torch.float16)

    def bfloat16(self) -> Part:
        return self.to(torch.bfloat16)

    def float(self) -> Part:
        return self.to(torch.float32)


def _asked(*args: Any, **kwargs: Any) -> tuple[Any, torch.dtype | None]:
    """Returns the device and the type of nn.Module.to()'s arguments."""
    if args and args[0] == "mlx":
        return args[0], None
    device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
    return device, dtype


def sorted_out(
    state: Mapping[str, Tensor], wanted: Layout, optional: Callable[[str], bool], strict: bool, name: str
) -> tuple[dict[str, Tensor], _IncompatibleKeys]:
    """Returns the tensors of a state dict that a network has a place for, and what is missing and unexpected. Raises
    RuntimeError where torch would, and for tensors of another shape. `optional` keys are not missed."""
    missing = [key for key in wanted if key not in state and not optional(key)]
    unexpected = [key for key in state if key not in wanted]
    wrong = [
        f"{key} has shape {tuple(state[key].shape)}, {tuple(shape)} is needed"
        for key, shape in wanted.items() if key in state and tuple(state[key].shape) != tuple(shape)
    ]
    if strict:
        wrong += [f"{len(keys)} {what}, the first {keys[0]}" for what, keys in
                  (("keys are missing", missing), ("keys have no place", unexpected)) if keys]
    if wrong:
        raise RuntimeError(f"model.{name}.load_state_dict(): {'; '.join(wrong[:4])}")
    if state and len(unexpected) == len(state):
        logger.warning("model.%s.load_state_dict(): nothing was loaded, as none of the %d keys has a place; the first "
                       "is %s", name, len(state), unexpected[0])
    return {key: state[key] for key in wanted if key in state}, _IncompatibleKeys(missing, unexpected)
