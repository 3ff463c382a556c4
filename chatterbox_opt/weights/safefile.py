"""Reads and writes safetensors files one tensor at a time.

The safetensors library maps the whole file, whose touched pages count as the process's memory until it is closed, so a
load with a cast would hold both the file and its result. Here it holds only the result and one tensor: English T3 as
float16 peaks at 2.2 GB instead of 3.7 (including 0.6 GB of torch and the test).
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
ALIGNED = 64  # bytes, like torch's allocations: the order of BLAS's sums depends on alignment
_MAX_HEADER = 100_000_000  # bytes, the format's own limit


class Entry(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # byte in the file
    nbytes: int


def read_header(path: Path) -> dict[str, Entry]:
    """Returns the entries of a file. Raises ValueError if it is truncated or not safetensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _MAX_HEADER + 1
        if length > _MAX_HEADER or length + 8 > size:
            raise ValueError(f"{path} is no safetensors file, or only its first {size} bytes: download it again")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            entries = {key: _entry(row, 8 + length) for key, row in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} has a broken header ({error}): download it again") from error
    end = max((e.start + e.nbytes for e in entries.values()), default=0)
    if end > size:
        raise ValueError(f"{path} is truncated: {size} bytes of {end}; download it again")
    return entries


def _entry(row: Mapping, data: int) -> Entry:
    begin, end = row["data_offsets"]
    dtype, shape = _DTYPES[row["dtype"]], tuple(row["shape"])
    if begin < 0 or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{end - begin} bytes for {shape} of {dtype}")
    return Entry(dtype, shape, data + begin, end - begin)


def read_tensors(path: Path, entries: Mapping[str, Entry]) -> Iterator[tuple[str, Tensor]]:
    """Yields the named tensors, each in its own memory, in the order of the file."""
    with path.open("rb") as file:
        for key, entry in sorted(entries.items(), key=lambda item: item[1].start):
            tensor = torch.empty(entry.shape, dtype=entry.dtype)
            if entry.nbytes:
                file.seek(entry.start)
                into = tensor.view(-1).view(torch.uint8).numpy().data
                if file.readinto(into) != entry.nbytes:
                    raise ValueError(f"{path} ended in the middle of {key}: download it again")
            yield key, tensor


def map_tensors(path: Path, entries: Mapping[str, Entry], aligned: int = 1) -> dict[str, Tensor]:
    """Returns the named tensors mapped from the file: a page is read when first touched, writes stay in memory, and the
    mapping is released with the last tensor. Those not aligned to `aligned` bytes, or to their own width, are copied.
    """
    mapped = {k: e for k, e in entries.items() if e.nbytes and not e.start % max(aligned, e.dtype.itemsize)}
    tensors = dict(read_tensors(path, {key: entry for key, entry in entries.items() if key not in mapped}))
    if mapped:
        first = min(entry.start for entry in mapped.values())
        first -= first % mmap.ALLOCATIONGRANULARITY
        end = max(entry.start + entry.nbytes for entry in mapped.values())
        with path.open("rb") as file:
            pages = mmap.mmap(file.fileno(), end - first, access=mmap.ACCESS_COPY, offset=first)
        for key, (dtype, shape, start, _) in mapped.items():
            flat = torch.frombuffer(pages, dtype=dtype, count=math.prod(shape), offset=start - first)
            tensors[key] = flat.view(shape)
    return tensors


def write(path: Path, layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], tensors: Iterable[Tensor]) -> None:
    """Writes a file. `tensors` are in the order of `layout`, and consumed one by one."""
    header: dict[str, dict] = {}
    at = 0
    for key, (dtype, shape) in layout.items():
        end = at + math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-(8 + len(encoded)) % ALIGNED)  # the data starts aligned
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for (key, (dtype, shape)), tensor in zip(layout.items(), tensors):
            if tensor.dtype != dtype or tuple(tensor.shape) != tuple(shape):
                raise ValueError(f"{key}: {tensor.dtype} {tuple(tensor.shape)} instead of {dtype} {tuple(shape)}")
            file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
