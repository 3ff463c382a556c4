"""Programmatic dependent launch: a kernel starts while the one before it still runs, loads what no kernel writes, such
as weights, and waits for the other's results before it reads them. Devices from compute capability 9.0 on can do it.

A kernel that takes part is launched with `early(device)` as its constant EARLY. It calls gdc_wait() before it writes
anything, and before it reads what kernels since the last ordinary launch, or that launch itself, may write: any of them
may still be running, not its predecessor alone. As every program waits, all of them are complete behind the wait.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

try:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
except ImportError:  # no Triton, or one before 3.4
    gdc_launch_dependents = gdc_wait = None

FIRST = (9, 0)  # compute capability


@cache
def able(device: torch.device) -> bool:
    nvidia = torch.version.hip is None  # AMD counts its devices differently
    return nvidia and gdc_wait is not None and torch.cuda.get_device_capability(device) >= FIRST


def early(device: torch.device) -> dict[str, Any]:
    """Returns the arguments of a launch."""
    on = device.type == "cuda" and able(device)
    return {"EARLY": True, "launch_pdl": True} if on else {"EARLY": False}
