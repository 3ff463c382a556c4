"""When two results say the same: of a kernel and its twin, of a graph and what it was recorded from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# of the difference's norm over the norm. A replay runs the kernels it was recorded from; what it may differ by is the
# order of their sums, which a vocoder's phases carry far. A graph that reads or writes the wrong place is off by 1.
REPLAY_TOLERANCE = {torch.float32: 1e-2, torch.float16: 5e-2, torch.bfloat16: 1e-1}


def difference(got: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest value."""
    same_kind(got, wanted)
    got, wanted = got.double(), wanted.double()
    return float((got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


def distance(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest of the differences' norms over the norms. Whole numbers have to be equal where all others are to the
    last bit: elsewhere they may be what was drawn between two candidates that are all but equal."""
    whole, worst = [], 0.0
    for a, b in zip(got, wanted):
        same_kind(a, b)
        if not b.is_floating_point():
            whole.append((a, b))
            continue
        there = b.isfinite()  # a mask of minus infinity is as good as a number
        if not torch.equal(a.isfinite(), there):
            return float("inf")
        a, b = (torch.where(there, t, 0).double() for t in (a, b))
        worst = max(worst, float((a - b).norm() / b.norm().clamp(min=1e-30)))
    if worst == 0 and not all(torch.equal(a, b) for a, b in whole):
        return float("inf")
    return worst


def ripples(*shape: int, device: torch.device) -> Tensor:
    """Numbers between -1 and 1 for a trial, which no generator is asked for: the requests' stay where they are."""
    return torch.arange(math.prod(shape), device=device).mul(12.9898).sin().view(shape)


def same_kind(got: Tensor, wanted: Tensor) -> None:
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        raise ValueError(f"{tuple(got.shape)} of {got.dtype} came out, not {tuple(wanted.shape)} of {wanted.dtype}")
