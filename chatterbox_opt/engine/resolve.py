""""auto" -> what this device does best. The one place that looks at hardware."""

from __future__ import annotations

import importlib.util

import torch

from ..options import EngineOptions


def resolve(options: EngineOptions, device: torch.device) -> EngineOptions:
    """A copy without a single "auto". Resolving twice changes nothing."""
    changes: dict[str, object] = {}
    half = half_dtype(device)
    if options.dtype == "auto":
        changes["dtype"] = half
    if options.s3gen_dtype == "auto":
        changes["s3gen_dtype"] = half
    if options.attention == "auto":
        usable = device.type == "cuda" and changes.get("dtype", options.dtype) != "float32"
        changes["attention"] = "flash" if usable and has_flash() else "sdpa"
    elif options.attention == "flash" and not (device.type == "cuda" and has_flash()):
        raise ValueError(
            "attention='flash' needs a CUDA device and flash-attn (pip install 'chatterbox-opt[flash]'); "
            f"device is {device}, flash-attn is {'there' if has_flash() else 'missing'}; 'auto' takes what there is"
        )
    if options.compile == "auto":
        changes["compile"] = "cudagraph" if device.type == "cuda" else None
    elif options.compile == "cudagraph" and device.type != "cuda":
        raise ValueError(f"compile='cudagraph' needs a CUDA device, not {device}; 'auto' takes what there is")
    if device.type != "cuda":
        changes["poll_every"] = 1  # looking costs nothing where nothing runs ahead
        changes["kernels"] = False
        changes["mel_bucket"] = 1  # no graphs to share
    if options.resampler == "auto":
        changes["resampler"] = "device"
    return options.replace(**changes)


def half_dtype(device: torch.device) -> str:
    """By what the processor computes in, not by what it can emulate."""
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return "bfloat16" if major >= 8 else "float16" if major >= 7 else "float32"
    if device.type == "cpu" and cpu_has_bf16():
        return "bfloat16"
    return "float32"


def cpu_has_bf16() -> bool:
    """AVX512-BF16 or AMX. Without them bf16 is converted to float32 and back, at a third of the speed."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in probes)


def has_flash() -> bool:
    return importlib.util.find_spec("flash_attn") is not None
