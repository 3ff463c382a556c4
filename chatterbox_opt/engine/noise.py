"""One request's randomness, drawn in upstream's order, so that a row never depends on its batch."""

from __future__ import annotations

import math
import zlib
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .graphs import recording


class RequestNoise:
    """`seed` None draws from torch's global generators (after `torch.manual_seed` what upstream would draw);
    a number has generators of its own that start where `torch.manual_seed(seed)` would put the global ones."""

    def __init__(self, device: torch.device, seed: int | None) -> None:
        self.device = torch.device(device)
        self.cpu: torch.Generator | None = None
        self.local: torch.Generator | None = None
        if seed is not None:
            self.cpu = torch.Generator("cpu").manual_seed(seed)
            # On the CPU upstream's device draws and host draws come from one stream.
            self.local = self.cpu if self.device.type == "cpu" else torch.Generator(self.device).manual_seed(seed)

    def exponential(self, out: Tensor) -> Tensor:
        """Fill `out` with Exp(1). argmax(p / Exp(1)) draws what torch.multinomial(p, 1) would, and on the CPU
        a (k, V) block holds the same numbers as k draws of (V,)."""
        with self._alone():
            return out.exponential_(1.0, generator=self.local)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        with self._alone():
            return torch.randn(shape, generator=self.local, device=self.device)

    def phases(self, n: int) -> Tensor:
        """(1, n, 1) in [-pi, pi), always drawn on the host, as upstream does."""
        return torch.rand(1, n, 1, generator=self.cpu).mul_(2 * math.pi).sub_(math.pi).to(self.device)

    def apart(self) -> RequestNoise:
        """Another request's randomness that follows from where this one stands, and leaves it there."""
        return RequestNoise(self.device, zlib.crc32(self.state().cpu().numpy().tobytes()))

    def state(self) -> Tensor:
        return self._generator().get_state()

    def restore(self, state: Tensor) -> None:
        """Back to an earlier `state`: what was drawn ahead of an utterance's end is undone."""
        self._generator().set_state(state)

    def _alone(self) -> AbstractContextManager:
        """While any thread records a graph, torch's global generator on a GPU draws for nobody else."""
        return recording if self.local is None and self.device.type == "cuda" else nullcontext()

    def _generator(self) -> torch.Generator:
        if self.local is not None:
            return self.local
        if self.device.type == "cuda":
            index = self.device.index
            return torch.cuda.default_generators[torch.cuda.current_device() if index is None else index]
        return torch.mps._get_default_mps_generator() if self.device.type == "mps" else torch.default_generator
