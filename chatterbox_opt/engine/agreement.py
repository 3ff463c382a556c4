"""Compares two results: of a kernel and its plain-torch twin, of a graph's replay and the eager run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

# Largest norm of the difference over the norm. A replay runs the same kernels, and may differ in the order of their
# sums, which a vocoder's phases amplify. A graph that reads or writes a wrong address is off by about 1.
REPLAY_TOLERANCE = {torch.float32: 1e-2, torch.float16: 5e-2, torch.bfloat16: 1e-1}


def difference(got: Tensor, wanted: Tensor) -> float:
    """Returns the largest difference over the largest value."""
    same_kind(got, wanted)
    got, wanted = got.double(), wanted.double()
    return float((got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


def distance(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Returns the largest norm of a difference over the norm. Integers must be equal if all floats are equal to the
    last bit; otherwise they may be tokens drawn between two nearly equal candidates, and are ignored."""
    whole, worst = [], 0.0
    for a, b in zip(got, wanted):
        same_kind(a, b)
        if not b.is_floating_point():
            whole.append((a, b))
            continue
        there = b.isfinite()  # a mask's minus infinity is a valid value
        if not torch.equal(a.isfinite(), there):
            return float("inf")
        a, b = (torch.where(there, t, 0).double() for t in (a, b))
        worst = max(worst, float((a - b).norm() / b.norm().clamp(min=1e-30)))
    if worst == 0 and not all(torch.equal(a, b) for a, b in whole):
        return float("inf")
    return worst


def ripples(*shape: int, device: torch.device) -> Tensor:
    """Returns numbers between -1 and 1 for a trial without using a generator, whose state requests depend on."""
    return torch.arange(math.prod(shape), device=device, dtype=torch.float32).mul(12.9898).sin().view(shape)


def tensors(*tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def same_kind(got: Tensor, wanted: Tensor) -> None:
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        raise ValueError(f"{tuple(got.shape)} of {got.dtype} came out, not {tuple(wanted.shape)} of {wanted.dtype}")
