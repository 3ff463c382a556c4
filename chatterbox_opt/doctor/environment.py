"""Describes hardware, installed packages and what "auto" means there, without names of the machine or its owner."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..cpu_limit import cpu_limit
from ..engine import resolve
from ..engine.first_trial import allocator_settings, driver
from ..engine.kernels.language import available
from ..engine.quantize import packs_float16
from ..options import EngineOptions

EXTRAS = {  # optional feature -> its distribution
    "triton": "triton", "flash": "flash-attn", "watermark": "resemble-perth", "server": "fastapi", "opus": "av",
    "wyoming": "wyoming", "japanese": "pykakasi", "chinese": "spacy-pkuseg",
}  # fmt: skip


def facts(device: torch.device) -> dict[str, Any]:
    record: dict[str, Any] = {
        "device": name_of(device), "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(), "torch": torch.__version__, "chatterbox_opt": __version__,
        "cores": os.cpu_count(), "threads": torch.get_num_threads(),
    }
    if (limit := cpu_limit()) is not None:
        record["cpu_limit"] = limit
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        record |= {
            "capability": f"{about.major}.{about.minor}", "memory_gb": round(about.total_memory / 1e9, 1),
            "multiprocessors": about.multi_processor_count, "driver": driver(), "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(), "devices": torch.cuda.device_count(),
            "allocator": torch.cuda.get_allocator_backend(), **allocator_settings(),
        }
    elif device.type == "cpu":
        record["capability"] = torch.backends.cpu.get_cpu_capability()
    record["extras"] = {extra: version_of(name) for extra, name in EXTRAS.items()}
    return record


def name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    with suppress(OSError):
        if found := re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M):
            return found[1].strip()
    return platform.processor() or platform.machine()


def version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def choices(asked: EngineOptions, device: torch.device) -> list[tuple[str, Any, str]]:
    """Returns (field, value, reason) for every "auto", and for what is turned off on this device."""
    got = resolve.resolve(asked, device)
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        half = whole = f"compute capability {major}.{minor}: bfloat16 from 8.0 on, float16 from 7.0 on, float32 below"
        flash = "flash-attn is installed" if resolve.has_flash() else "flash-attn is not installed or does not import"
        flash = flash if major >= 8 else "flash-attn needs compute capability 8.0"
        graphs, triton = "a CUDA device", "Triton is there" if available() else "Triton is missing"
    else:
        units = device.type == "cpu" and resolve.cpu_has_bf16()
        half = whole = "AVX512-BF16 or AMX units" if units else "no units for half precision"
        if got.dtype == "float16" and device.type == "cpu" and packs_float16(device):
            half += ": weights in float16, products in float32"
        if device.type == "mps":
            half, whole = "bfloat16 from macOS 14 on, where a small trial agrees", "float32 on MPS"
        flash, graphs, triton = "flash-attn needs a CUDA device", "not a CUDA device", "not a CUDA device"
    return [
        ("dtype", got.dtype, half), ("s3gen_dtype", got.s3gen_dtype, whole), ("attention", got.attention, flash),
        ("compile", got.compile, graphs), ("captures", got.captures, graphs), ("kernels", got.kernels, triton),
        ("trial", got.trial, graphs), ("poll_every", got.poll_every, "a look waits for a GPU, and costs a CPU nothing"),
    ]  # fmt: skip
