"""Checks the requested options against the form of a packed folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from ..config import ModelConfig
from ..engine.quantize import packs_float16
from ..engine.resolve import resolve, stored_dtype
from ..options import EngineOptions
from ..switches import switch_options
from ..weights.packed import Form

logger = logging.getLogger(__name__)


def form_of(device: torch.device, config: ModelConfig, switches: dict[str, Any]) -> Form:
    """Returns the form that these switches (a constructor's SWITCHES) give on the device."""
    resolved = resolve(switch_options(device, config, **switches), device)
    half = stored_dtype(resolved, device) != getattr(torch, resolved.dtype)
    return Form(device.type, resolved.dtype, resolved.s3gen_dtype, resolved.quantize, half)


def as_packed(
    folder: Path, form: Form, device: torch.device, config: ModelConfig, switches: dict[str, Any]
) -> dict[str, Any]:
    """Returns `switches` completed with the form of a packed folder. Raises ValueError if they contradict it or the
    device cannot compute with it: nothing is converted silently."""
    if form.device != device.type:
        raise ValueError(f"{folder} is packed for {form.device}, not {device.type}: pack the checkpoint for that")
    if form.half and not packs_float16(device):
        raise ValueError(f"{folder} is packed for x86 processors, which this is not: pack the checkpoint here")
    asked = switch_options(device, config, **switches)
    held = {name: getattr(form, name) for name in ("dtype", "s3gen_dtype", "quantize")}
    wrong = [f"{k}={v!r}" for k in held if (v := getattr(asked, k)) not in ("auto", None, held[k])]
    if wrong:
        raise ValueError(f"{folder} is packed as {form}; {' and '.join(wrong)} was asked for: load the checkpoint that "
                         "it was made from, or pack that again")
    usual = resolve(EngineOptions(), device).dtype
    if form.dtype not in (usual, "float32"):
        logger.warning("%s is packed in %s; this processor is quicker in %s: pack it here", folder, form.dtype, usual)
    engine = switches.get("engine") or EngineOptions()
    return switches | {"engine": engine.replace(**held)}
