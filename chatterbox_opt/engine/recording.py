"""What torch leaves to whoever records CUDA graphs: streams, cleaning up after a failure, counting nodes."""

from __future__ import annotations

import ctypes
import os
import weakref
from contextlib import suppress
from typing import Any

import torch

STREAMS = 32  # of one priority per device, which torch hands out in turn

_in_use: weakref.WeakSet[Any] = weakref.WeakSet()


def own_stream(device: torch.device) -> torch.cuda.Stream:
    """Returns a stream that no other caller of this function holds. torch keeps a cuBLAS workspace per stream and
    thread, and a graph keeps the workspace of the stream it was captured on: what shares one must not run concurrently.
    """
    stream = torch.cuda.Stream(device)
    for _ in range(STREAMS):
        if stream not in _in_use:
            break
        stream = torch.cuda.Stream(device)
    _in_use.add(stream)
    return stream


def give_up_recording(device: torch.device, graph: Any, pool: Any) -> None:
    """Cleans up after a failed capture, which leaves torch's global generator in capture mode, where it cannot draw,
    and, if the capture could not be ended, the allocator still filling its pool."""
    index = torch.cuda.current_device() if device.index is None else device.index
    with suppress(RuntimeError):  # newer versions of torch put the allocator in order here, and only once
        graph.reset()
    with suppress(AttributeError, RuntimeError, TypeError):  # raised if it was ended or never begun
        torch._C._cuda_endAllocateToPool(index, pool)
        torch._C._cuda_releasePool(index, pool)
    with suppress(AttributeError, RuntimeError):  # the error to report is the capture's
        generator = torch.cuda.default_generators[index]
        generator.graphsafe_set_state(generator.clone_state())


def nodes_recorded(stream: Any) -> int | None:
    """Returns the number of nodes that the capture under way on `stream` has so far; None if the driver does not
    tell."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        capturing, graph, count = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_size_t()
        handle = ctypes.c_void_p(stream.cuda_stream)
        failed = driver.cuStreamGetCaptureInfo_v2(
            handle, ctypes.byref(capturing), None, ctypes.byref(graph), None, None
        ) or driver.cuGraphGetNodes(graph, None, ctypes.byref(count))
    except (OSError, AttributeError):  # no such library, or no such function in it
        return None
    return None if failed else count.value


def pool_bytes(pool: Any) -> int | None:
    """Returns the device memory that the graphs of a pool hold; None if unknown."""
    with suppress(AttributeError, KeyError, RuntimeError, TypeError):
        segments = torch.cuda.memory_snapshot()
        return sum(s["total_size"] for s in segments if tuple(s["segment_pool_id"]) == tuple(pool))
    return None
