"""Tries each kernel on the device once per process and shape: it is used only if it compiles, agrees with its
plain-torch twin, and is at least as fast.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from ..agreement import difference
from ..graphs import Captured
from ..recording import own_stream

logger = logging.getLogger(__name__)

# Largest difference over the largest value; kernel and twin round intermediate results in different places.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
REPEATS = 20  # calls per captured graph: a single call is shorter than a graph's launch
ROUNDS = 5  # of which the fastest counts

Run = Callable[[int], tuple[Tensor, ...]]  # the i-th repetition may use other weights: one layer stays in the cache
Timer = Callable[[Run, torch.device], float]  # seconds per call


@dataclass(frozen=True)
class Verdict:
    name: str
    shape: str
    device: str
    used: bool
    error: float | None = None  # against the twin
    own: float | None = None  # seconds
    twin: float | None = None
    problem: str | None = None  # why it failed or is wrong; None if it is only slower


_verdicts: dict[Hashable, Verdict] = {}


def verdicts() -> list[Verdict]:
    """Returns the verdicts on every kernel and shape tried in this process."""
    return list(_verdicts.values())


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Returns the stream of all trials, which run one after another."""
    return own_stream(device)


def captured_seconds(run: Run, device: torch.device) -> float:
    captured = Captured("cudagraph", device, _stream(device))

    def repeated() -> None:
        for i in range(REPEATS):
            run(i)

    captured.prepare("trial", repeated)
    best = float("inf")
    with torch.cuda.device(device):
        for _ in range(ROUNDS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            captured.run("trial", repeated)
            end.record()
            end.synchronize()
            best = min(best, start.elapsed_time(end) / 1000 / REPEATS)
    return best


def accepts(
    name: str, shape: str, kernel: Run, twin: Run, device: torch.device, tolerance: float,
    timer: Timer = captured_seconds,
) -> bool:  # fmt: skip
    """Whether `kernel` may replace `twin`. Both return every tensor that must agree."""
    key = name, shape, str(device)
    if key not in _verdicts:
        _verdicts[key] = _try(key, kernel, twin, tolerance, partial(timer, device=device))
    return _verdicts[key].used


@torch.inference_mode()
def _try(
    key: tuple[str, str, str], kernel: Run, twin: Run, tolerance: float, seconds: Callable[[Run], float]
) -> Verdict:
    name, shape, _ = key
    error = None
    try:
        wanted, got = twin(0), kernel(0)
        error = max(map(difference, got, wanted))
        if not error <= tolerance:  # also true for NaN
            text = "kernel %s (%s) is wrong by %.2g, %.2g is allowed: plain torch is used instead"
            logger.warning(text, name, shape, error, tolerance)
            return Verdict(*key, False, error, problem=f"wrong by {error:.2g}, {tolerance:.2g} is allowed")
        own, plain = seconds(kernel), seconds(twin)
        if own > plain:
            own = min(own, seconds(kernel))  # a device at rest is slow at first
    except Exception as problem:  # compiler, driver and device may raise anything
        reason = str(problem).strip().split("\n")[0][:200]
        text = "kernel %s (%s) failed: plain torch is used instead (%s: %s)"
        logger.warning(text, name, shape, type(problem).__name__, reason)
        return Verdict(*key, False, error, problem=f"{type(problem).__name__}: {reason}")
    verdict = "used" if own <= plain else "slower: plain torch is used instead"
    text = "kernel %s (%s): %.1f us, plain torch %.1f us, difference %.2g: %s"
    logger.debug(text, name, shape, 1e6 * own, 1e6 * plain, error, verdict)
    return Verdict(*key, own <= plain, error, own, plain)
