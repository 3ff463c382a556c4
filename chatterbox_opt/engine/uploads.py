"""Numbers of the host on the device, without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def upload(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Returns them as a (len,) long tensor. On CUDA the copy is queued from pinned memory, which torch does not use
    again before the copy is done; from other memory the host would wait for all work that was queued before."""
    pinned = device.type == "cuda" and torch.cuda.is_available()
    staged = torch.tensor(numbers, dtype=torch.long, device="cpu", pin_memory=pinned)
    return staged.to(device, non_blocking=pinned)
