"""Whether T3 may run in bfloat16 on MPS: by the system's version, and by a small Llama that is tried first."""

from __future__ import annotations

import dataclasses
import logging
from functools import cache

import torch
from torch import Tensor

from ..config import MODELS
from ..models.llama import Llama
from .agreement import distance
from .cache import Prefill, empty_kv
from .own_rows import DecodeEach, Own

logger = logging.getLogger(__name__)

FIRST_MACOS = (14, 0)  # that has bfloat16
SMALL = dataclasses.replace(MODELS["tts"].t3, layers=2, dim=256, heads=4, ff=512)  # heads of the published size
POSITIONS = 24
TOLERANCE = 0.03  # norm of the difference over the norm; a CPU's is 0.008


@cache
def mps_has_bfloat16() -> bool:
    mps = torch.backends.mps
    if not mps.is_available() or not mps.is_macos_or_newer(*FIRST_MACOS):
        return False
    return computes_bfloat16(torch.device("mps"))


@torch.inference_mode()
def computes_bfloat16(device: torch.device) -> bool:
    """Whether a prefill and a step in bfloat16 on the device give what they give in float32 on the CPU. Half precision
    on MPS has been wrong without an error in some versions of torch."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        llama = Llama(SMALL)
    llama.to_empty(device="cpu").float()
    for weight in llama.parameters():
        fan = weight.shape[-1] if weight.ndim > 1 else 1
        weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float32) * fan**-0.5)
    x = torch.randn(2, POSITIONS, SMALL.dim, generator=generator, dtype=torch.float32)
    wanted = _hidden(llama, x)
    try:
        got = _hidden(llama.to(device, torch.bfloat16), x.to(device, torch.bfloat16)).float().cpu()
    except Exception as error:  # whatever a backend raises for a type that one of its operations lacks
        logger.warning("T3 stays in float32: bfloat16 fails on %s, torch %s (%s)", device, torch.__version__, error)
        return False
    off = distance([got], [wanted])
    if off < TOLERANCE:
        return True
    logger.warning("T3 stays in float32: bfloat16 on %s is off by %.2g (torch %s)", device, off, torch.__version__)
    return False


def _hidden(llama: Llama, x: Tensor) -> Tensor:
    """(B, T, D): all positions but the last as a prefill, the last as a step."""
    rows, last = len(x), x.shape[1] - 1
    kv = empty_kv(SMALL, rows, last + 1, x.device, x.dtype)
    positions = torch.arange(last + 1, device=x.device)[None]
    before = llama(x[:, :last], positions[:, :last], Prefill(kv, 0))
    return torch.cat([before, llama(x[:, last:], positions[:, last:], DecodeEach.of([Own(kv, last)]))], 1)
