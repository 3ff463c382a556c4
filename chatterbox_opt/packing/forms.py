"""What a packed folder holds, against what is asked for."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from ..engine.quantize import packs_float16
from ..engine.resolve import resolve, stored_dtype
from ..options import EngineOptions
from ..switches import TOGGLES, toggles
from ..weights.packed import Form, Packed, is_packed, read_packed

logger = logging.getLogger(__name__)


def form_of(device: torch.device, options: dict[str, Any]) -> Form:
    """`options`: a constructor's."""
    resolved = resolve(_asked(device, options), device)
    half = stored_dtype(resolved, device) != getattr(torch, resolved.dtype)
    return Form(device.type, resolved.dtype, resolved.quantize, half)


def as_packed(folder: str | Path, device: torch.device, options: dict[str, Any]) -> dict[str, Any]:
    """`options` with what a packed folder's T3 is; as they are for any other. Raises ValueError where they contradict
    it: nothing is converted in silence."""
    if not is_packed(folder):
        return options
    form = check_device(folder, read_packed(folder), device)
    asked = _asked(device, options)
    wrong = [f"dtype={asked.dtype!r}"] * (asked.dtype not in ("auto", form.dtype))
    wrong += [f"quantize={asked.quantize!r}"] * (asked.quantize not in (None, form.quantize))
    if wrong:
        raise ValueError(f"{folder} is packed as {form}; {' and '.join(wrong)} was asked for: load the checkpoint that "
                         "it was made from, or pack that again")
    usual = resolve(EngineOptions(), device).dtype
    if form.dtype not in (usual, "float32"):
        logger.warning("%s is packed in %s; this processor is quicker in %s: pack it here", folder, form.dtype, usual)
    engine = options.get("engine") or EngineOptions()
    return options | {"engine": engine.replace(dtype=form.dtype, quantize=form.quantize)}


def check_device(folder: str | Path, packed: Packed, device: torch.device) -> Form:
    form = packed.form
    if form.device != device.type:
        raise ValueError(f"{folder} is packed for {form.device}, not {device.type}: pack the checkpoint for that")
    if form.half and not packs_float16(device):
        raise ValueError(f"{folder} is packed for x86 processors, which this is not: pack the checkpoint here")
    return form


def _asked(device: torch.device, options: dict[str, Any]) -> EngineOptions:
    return toggles(device, **{k: options[k] for k in TOGGLES if k in options})
