"""Numbers from the host to the device and back, without waiting for what else the device has to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def upload(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Returns them as a (len,) long tensor. On CUDA the copy is queued from pinned memory, which torch does not use
    again before the copy is done; from other memory the host would wait for all work that was queued before."""
    pinned = device.type == "cuda" and torch.cuda.is_available()
    staged = torch.tensor(numbers, dtype=torch.long, device="cpu", pin_memory=pinned)
    return staged.to(device, non_blocking=pinned)


def fetch(numbers: Tensor) -> Callable[[], list]:
    """Queues the copy of a tensor to the host. The function it returns gives its numbers as lists; on CUDA it waits for
    the copy alone, and not for what was queued after it."""
    if numbers.device.type != "cuda":
        return numbers.tolist
    staged = torch.empty(numbers.shape, dtype=numbers.dtype, device="cpu", pin_memory=torch.cuda.is_available())
    staged.copy_(numbers, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(numbers.device))

    def wait() -> list:
        copied.synchronize()
        return staged.tolist()

    return wait
