"""A kernel has to earn its place on the device it would run on: it is tried once per process and shape, and stays out
unless it compiles, says what its twin says, and takes no longer.
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

logger = logging.getLogger(__name__)

# of the largest difference over the largest value; both sides round in between, each in its own places
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
REPEATS = 20  # calls in a captured graph: one call is shorter than the start of a graph
ROUNDS = 5  # of which the quickest counts

Run = Callable[[int], tuple[Tensor, ...]]  # the i-th repetition may take other weights: one layer's fit into a cache
Timer = Callable[[Run, torch.device], float]  # seconds a call


@dataclass(frozen=True)
class Verdict:
    name: str
    shape: str
    device: str
    used: bool
    error: float | None = None  # from the twin
    own: float | None = None  # seconds
    twin: float | None = None
    problem: str | None = None  # why it failed or is wrong; a slower one has none


_verdicts: dict[Hashable, Verdict] = {}


def verdicts() -> list[Verdict]:
    """Of every kernel and shape that was tried in this process."""
    return list(_verdicts.values())


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all trials, which come one after another."""
    return torch.cuda.Stream(device)


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
    """Whether `kernel` may stand in for `twin`. Both return every tensor they are to agree on."""
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
        if not error <= tolerance:  # NaN is not
            text = "kernel %s (%s) is wrong by %.2g, %.2g is allowed: plain torch is used instead"
            logger.warning(text, name, shape, error, tolerance)
            return Verdict(*key, False, error, problem=f"wrong by {error:.2g}, {tolerance:.2g} is allowed")
        own, plain = seconds(kernel), seconds(twin)
    except Exception as problem:  # whatever compiler, driver or device have to say
        reason = str(problem).strip().split("\n")[0][:200]
        text = "kernel %s (%s) failed: plain torch is used instead (%s: %s)"
        logger.warning(text, name, shape, type(problem).__name__, reason)
        return Verdict(*key, False, error, problem=f"{type(problem).__name__}: {reason}")
    verdict = "used" if own <= plain else "slower: plain torch is used instead"
    text = "kernel %s (%s): %.1f us, plain torch %.1f us, difference %.2g: %s"
    logger.debug(text, name, shape, 1e6 * own, 1e6 * plain, error, verdict)
    return Verdict(*key, own <= plain, error, own, plain)
