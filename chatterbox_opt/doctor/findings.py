"""Findings of a check, and running a check so that its failure does not affect others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

OK, SLOWER, WRONG, NOT_HERE = "ok", "slower", "wrong", "not here"


@dataclass(frozen=True)
class Finding:
    check: str
    verdict: str  # OK | SLOWER | WRONG | NOT_HERE
    text: str
    switch: str = ""  # the option that changes it
    figures: dict[str, Any] = field(default_factory=dict)


Check = Callable[[Any], Iterator[Finding]]


def found(check: Check, patient: Any, left: float) -> Iterator[Finding]:
    """Yields the findings of `check`; an exception becomes a finding too."""
    name = check.__name__.replace("_", " ")
    if left <= 0:
        yield Finding(name, NOT_HERE, "no time was left for it")
        return
    start = time.perf_counter()
    try:
        yield from check(patient)
    except Exception as problem:
        reason = " ".join(str(problem).split())[:300]
        took = time.perf_counter() - start
        yield Finding(name, WRONG, f"{type(problem).__name__}: {reason} (after {took:.1f} s)")


def judged(check: str, fine: bool, text: str, switch: str = "", **figures: Any) -> Finding:
    return Finding(check, OK if fine else WRONG, text, "" if fine else switch, figures)
