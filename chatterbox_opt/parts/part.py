"""What a model's three parts have in common."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from ..engine.resolve import indexed
from ..options import EngineOptions
from ..weights.layout import Layout

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)


class Unmoved:
    """Methods of nn.Module that move and convert, which change nothing here."""

    def to(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def eval(self) -> Any:
        return self

    def train(self, mode: bool = True) -> Any:
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        return self

    def cpu(self) -> Any:
        return self.to("cpu")

    def cuda(self, device: Any = None) -> Any:
        return self.to("cuda" if device is None else torch.device("cuda", torch.device(device).index or 0))

    def half(self) -> Any:
        return self.to(torch.float16)

    def bfloat16(self) -> Any:
        return self.to(torch.bfloat16)

    def float(self) -> Any:
        return self.to(torch.float32)

    def double(self) -> Any:
        return self.to(torch.float64)

    def type(self, dtype: Any) -> Any:
        return self.to(dtype)


class Part(Unmoved, ABC):
    """A network of a loaded model, which works through the model's engine and encoders, beside all other calls. What is
    not defined here is the network's own. Where it computes, and in which precision, was chosen when it was loaded."""

    named = ""  # in messages: the attribute of the model
    called: tuple[str, ...] = ()  # methods that generate() calls once they are replaced
    device: torch.device
    _kept: Any = None  # its network, once another part has taken its place

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
        """Becomes another network, of this package or of chatterbox-tts. None changes nothing."""

    @abstractmethod
    def again(self) -> Self:
        """Returns a part of the same network without anything that a program has changed in this one."""

    @abstractmethod
    def lent(self, options: EngineOptions | None, device: torch.device) -> Any:
        """Returns its network for a model with these options, on which a voice encoder's form does not depend, or a
        state dict where that model needs another form."""

    @property
    @abstractmethod
    def place(self) -> Any:
        """What it works through: the same object for all parts that stood at one model's attribute."""

    def replaced_by(self, network: Any) -> Self:
        """What `model.t3 = network` does. Returns the part that now stands there; this one keeps its network, so that
        it can be put back, with whatever a program has changed in it."""
        before = self.network
        if type(network) is type(self) and network.place is self.place and network._kept is not None:
            network.take(network._kept)
            network._kept, after = None, network
        else:
            after = self.again()
            after.take(network)
            if after.network is before:
                return self
        self._kept = before
        return after

    def stands(self, network: Any) -> bool:
        """Whether it already is the network in use."""
        return network is self.network and self._kept is None

    def check_in_use(self) -> None:
        if self._kept is not None:
            raise RuntimeError(f"another network has taken its place; assign this one to model.{self.named} again")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # of copy and pickle, before there is a network
            raise AttributeError(name)
        return getattr(self.network, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if self._is_own(name, value):
            vars(self).pop(name, None)  # its own method is put back
            return
        super().__setattr__(name, value)
        if name.startswith("_"):
            return
        if self.replaces(name):
            seen = "generate() calls it, a piece at a time, and no other call does"
            self._tell(f"{name} was replaced", f"%s: {seen if name in self.called else 'no call of the model uses it'}")
        elif isinstance(value, nn.Module):
            own = getattr(self.network, name, None)
            if own is not None and getattr(value, "_orig_mod", value) is not own:  # of what the compiler has wrapped
                self._tell(f"{name} was assigned", "%s: nothing is spoken with it; load_state_dict() takes weights")

    def _is_own(self, name: str, value: Any) -> bool:
        own = getattr(type(self), name, None)
        if not callable(own) or getattr(value, "__self__", self) not in (self, type(self)):
            return False
        return getattr(value, "__func__", value) is getattr(own, "__func__", own)

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

    def train(self, mode: bool = True) -> Part:
        if mode:
            self._tell("train()", "%s: it speaks and does not learn; train with chatterbox-tts")
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


def _asked(*args: Any, **kwargs: Any) -> tuple[Any, torch.dtype | None]:
    """Returns the device and the type of nn.Module.to()'s arguments."""
    if "mlx" in (*args, kwargs.get("device")):
        return "mlx", None
    device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
    return device, dtype


def sorted_out(
    state: Mapping[str, Tensor], wanted: Layout, optional: Callable[[str], bool], strict: bool, name: str
) -> tuple[dict[str, Tensor], _IncompatibleKeys]:
    """Returns the tensors of a state dict that a network has a place for, and what is missing and unexpected. Raises
    RuntimeError where torch would, and for tensors of another shape. `optional` keys are not missed, nor looked at."""
    missing = [key for key in wanted if key not in state and not optional(key)]
    unexpected = [key for key in state if key not in wanted]
    wrong = [
        f"{key} has shape {tuple(state[key].shape)}, {tuple(shape)} is needed"
        for key, shape in wanted.items()
        if key in state and not optional(key) and tuple(state[key].shape) != tuple(shape)
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
