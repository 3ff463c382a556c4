"""The random numbers of one utterance, drawn in upstream's order, so that a row does not depend on its batch."""

from __future__ import annotations

import math
import threading
import weakref
import zlib
from functools import cache

import torch
from torch import Tensor

_lock = threading.Lock()
_borrower: weakref.ref[RequestNoise] | None = None  # the one that continues torch's global generators at present


@cache
def _draws_by_block() -> bool:
    """Whether a block of exponentials holds the numbers of its rows drawn one by one. MKL's, of older torch (2.6),
    begin each draw with another part of the generator's state."""
    block, rows = torch.empty(2, 2, 64, device="cpu", dtype=torch.float32)
    block.exponential_(generator=torch.Generator("cpu").manual_seed(0))
    generator = torch.Generator("cpu").manual_seed(0)
    for row in rows:
        row.exponential_(generator=generator)
    return torch.equal(block, rows)


class RequestNoise:
    """Own generators, in the state that `torch.manual_seed(seed)` would give the global ones. With `seed` None they
    continue torch's global generators, as upstream does: these are borrowed, and `give_back()` advances them by what
    was drawn. They have one borrower at a time; a request that comes meanwhile draws its seed from them."""

    def __init__(self, device: torch.device, seed: int | None) -> None:
        self.device = torch.device(device)
        self._lent: list[tuple[torch.Generator, torch.Generator, Tensor]] = []  # (global one, ours, its state then)
        on_host = self.device.type == "cpu"
        if seed is None and self._borrow():
            lenders = [torch.default_generator] + ([] if on_host else [global_generator(self.device)])
            self._lent = [(lender, copy_of(lender), lender.get_state()) for lender in lenders]
            self.cpu, self.local = self._lent[0][1], self._lent[-1][1]
            return
        seed = int(torch.randint(2**62, (), device="cpu").item()) if seed is None else seed
        self.cpu = torch.Generator("cpu").manual_seed(seed)
        # On the CPU upstream's device draws and host draws come from one stream.
        self.local = self.cpu if on_host else torch.Generator(self.device).manual_seed(seed)

    def _borrow(self) -> bool:
        global _borrower
        with _lock:
            if _borrower is not None and _borrower() is not None:
                return False
            _borrower = weakref.ref(self)
            return True

    def give_back(self) -> None:
        """Advances the global generators by what was drawn here, unless other code has used them since."""
        global _borrower
        lent, self._lent = self._lent, []
        for lender, ours, before in lent:
            if torch.equal(lender.get_state(), before):
                lender.set_state(ours.get_state())
        with _lock:
            if lent and _borrower is not None and _borrower() is self:
                _borrower = None

    def exponential(self, out: Tensor) -> Tensor:
        """Fills `out` with Exp(1). argmax(p / Exp(1)) draws what torch.multinomial(p, 1) would, and on the CPU
        a (k, V) block holds the same numbers as k draws of (V,). `out` may be on another device than the generator."""
        if out.device.type != self.device.type:
            return out.copy_(self.exponential(torch.empty_like(out, device=self.device)))
        if out.ndim > 1 and self.device.type == "cpu" and not _draws_by_block():
            for row in out:
                row.exponential_(1.0, generator=self.local)
            return out
        return out.exponential_(1.0, generator=self.local)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.local, device=self.device, dtype=torch.float32)

    def phases(self, n: int) -> Tensor:
        """Returns (1, n, 1) in [-pi, pi), always drawn on the host, as upstream does."""
        drawn = torch.rand(1, n, 1, generator=self.cpu, dtype=torch.float32)
        return drawn.mul_(2 * math.pi).sub_(math.pi).to(self.device)

    def fork(self) -> RequestNoise:
        """Returns new generators seeded from the state of this one, which stays unchanged."""
        return RequestNoise(self.device, zlib.crc32(self.state().cpu().numpy().tobytes()))

    def state(self) -> Tensor:
        return self.local.get_state()

    def restore(self, state: Tensor) -> None:
        """Returns to an earlier `state`: undoes what was drawn past an utterance's end."""
        self.local.set_state(state)


def copy_of(generator: torch.Generator) -> torch.Generator:
    return torch.Generator(generator.device).set_state(generator.get_state())


def global_generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        index = device.index
        return torch.cuda.default_generators[torch.cuda.current_device() if index is None else index]
    return torch.mps._get_default_mps_generator() if device.type == "mps" else torch.default_generator
