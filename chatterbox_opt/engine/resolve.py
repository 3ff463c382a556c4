"""Replaces "auto" in options by what is best on the device. Only this file and mps_bfloat16.py look at hardware."""

from __future__ import annotations

import importlib.util
import logging
from functools import cache

import torch

from ..options import EngineOptions
from .digits import has_quantized_tensors
from .mps_bfloat16 import mps_has_bfloat16
from .quantize import packs_float16

logger = logging.getLogger(__name__)

# Up to macOS 15.0 no axis of a convolution's output may exceed 65,536: 120 positions for each of 546 mel frames.
MPS_FRAMES = 512


def resolve(options: EngineOptions, device: str | torch.device) -> EngineOptions:
    """Returns a copy of `options` without any "auto". Resolving twice changes nothing."""
    if is_mlx(device):
        return _resolve_beside_mlx(options)
    device = torch.device(device)
    changes: dict[str, object] = {}
    half = half_dtype(device)
    if options.dtype == "auto":
        # A CPU reads 16-bit weights in half the time, whatever it computes in. Even one that computes in bf16 is twice
        # as fast with the rest in float32: attention of a single query takes 2.5 times as long in bf16 (Zen 5).
        changes["dtype"] = "float16" if packs_float16(device) else "bfloat16" if _on_mps_in_bf16(device) else half
    if options.s3gen_dtype == "auto":
        changes["s3gen_dtype"] = half
    in_half = changes.get("dtype", options.dtype) != "float32"
    if options.attention == "auto":
        changes["attention"] = "flash" if in_half and runs_flash(device) and has_flash() else "sdpa"
    elif options.attention == "flash" and not (in_half and runs_flash(device) and has_flash()):
        raise ValueError(
            "attention='flash' needs half precision, a CUDA device from Ampere on, and flash-attn "
            f"(pip install 'chatterbox-opt[flash]'); this is {changes.get('dtype', options.dtype)} on {device}, "
            f"flash-attn {'is there' if has_flash() else 'does not import'}; 'auto' takes what there is"
        )
    if options.flow_int8 and device.type != "cpu":
        raise ValueError(f"flow_int8 is of a CPU, which {device} is not")
    if (options.quantize == "int8" or options.flow_int8) and device.type == "cpu" and not has_quantized_tensors():
        name = "flow_int8" if options.flow_int8 else "quantize='int8'"
        raise ValueError(
            f"{name} needs torch's quantized tensors on a CPU, which torch {torch.__version__} does not have; "
            "install a torch that has them (2.14 does), or leave it out"
        )
    if options.quantize == "int4" and device.type == "cuda" and not from_ampere(device):
        raise ValueError(f"quantize='int4' needs an Ampere GPU or a newer one, which {device} is not; 'int8' works")
    if options.compile == "auto":
        changes["compile"] = {"cuda": "cudagraph", "cpu": "trace"}.get(device.type)
    elif (needed := {"cudagraph": "cuda", "trace": "cpu"}.get(options.compile, device.type)) != device.type:
        raise ValueError(
            f"compile={options.compile!r} needs a {needed.upper()} device, not {device}; 'auto' takes what there is"
        )
    if device.type == "mps":
        changes["wav_chunk"] = min(options.wav_chunk, MPS_FRAMES)
    if options.trial == "auto":
        changes["trial"] = "first" if device.type == "cuda" else "off"
    if device.type != "cuda":
        changes["poll_every"] = 1  # without asynchronous launches a look costs nothing
        changes["kernels"] = False
        changes["mel_bucket"] = 1  # no graphs to share
    if options.resampler == "auto":
        changes["resampler"] = "exact" if device.type == "cpu" else "device"
    return options.replace(**changes)


def _resolve_beside_mlx(options: EngineOptions) -> EngineOptions:
    """Returns options of which `dtype`, `s3gen_dtype`, `poll_every` and `wav_chunk` apply to MLX and the rest to torch,
    on a CPU."""
    changes: dict[str, object] = {"wav_chunk": min(options.wav_chunk, MPS_FRAMES)}  # a Mac may have 8 GB
    if options.dtype == "auto":
        changes["dtype"] = "bfloat16" if torch.backends.mps.is_available() else "float32"  # on a CPU it is for tests
    if options.s3gen_dtype == "auto":
        changes["s3gen_dtype"] = "float32"
    rest = resolve(options.replace(**changes, quantize=None), indexed("mlx"))  # MLX quantizes by itself
    return rest.replace(poll_every=options.poll_every, quantize=options.quantize)


def is_mlx(device: str | torch.device) -> bool:
    return isinstance(device, str) and device == "mlx"


def indexed(device: str | torch.device) -> torch.device:
    """Returns a device that means the same in every thread: "cuda" becomes the calling thread's current device, and
    "mlx" the CPU, where torch's part of such a model runs."""
    if is_mlx(device):
        return torch.device("cpu")
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def disable_cudnn_attention(device: torch.device) -> None:
    """Turns cuDNN's attention off, for the whole process: torch prefers it on Hopper, where it builds a plan for every
    new length and thread, and every text has another length."""
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def _on_mps_in_bf16(device: torch.device) -> bool:
    """T3 alone: its steps wait for its weights to be read, and bf16 has float32's range."""
    return device.type == "mps" and mps_has_bfloat16()


def half_dtype(device: torch.device) -> str:
    """Returns the 16-bit type that the device computes in natively, else "float32"."""
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return "bfloat16" if major >= 8 else "float16" if major >= 7 else "float32"
    if device.type == "cpu" and cpu_has_bf16():
        return "bfloat16"
    return "float32"


def cpu_has_bf16() -> bool:
    """Whether torch uses AVX512-BF16 or AMX. Without them, or if ATEN_CPU_CAPABILITY disables them, bf16 is converted
    to float32 and back, at a third of the speed."""
    return _cpu_has("_is_avx512_bf16_supported") or cpu_has_amx()


def cpu_has_amx() -> bool:
    """Whether torch multiplies tiles of bf16 (Intel's Xeon from Sapphire Rapids on)."""
    return _cpu_has("_is_amx_tile_supported")


def _cpu_has(probe: str) -> bool:
    allowed = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return allowed and getattr(torch.cpu, probe, lambda: False)()


def stored_dtype(options: EngineOptions, device: torch.device) -> torch.dtype:
    """Returns the dtype T3 is loaded in: float32 if only the weights of its products become 16 bits, in the engine."""
    packed = options.dtype == "float16" and packs_float16(device)
    return torch.float32 if packed else getattr(torch, options.dtype)


def from_ampere(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


def runs_flash(device: torch.device) -> bool:
    return device.type == "cuda" and from_ampere(device)


@cache
def has_flash() -> bool:
    """Whether flash-attn imports: a build for another torch is installed, but fails on import."""
    if importlib.util.find_spec("flash_attn") is None:
        return False
    try:
        from flash_attn import flash_attn_with_kvcache  # noqa: F401
    except Exception as error:  # a foreign binary may raise anything
        logger.warning("flash-attn is installed and does not import (%s); using SDPA", error)
        return False
    return True
