"""Chooses the operations that each network is handed: by device and options, and for kernels by a trial."""

from __future__ import annotations

import dataclasses

import torch

from ..models.layers import T3_REFERENCE, T3Operations
from ..models.t3 import T3
from ..options import EngineOptions
from .kernels import cpu


def t3_operations(t3: T3, options: EngineOptions) -> T3Operations:
    """Returns what runs where kernels/step.py has no kernel."""
    weight = t3.speech_emb.weight
    if not weight.is_cpu or t3.config.is_gpt or options.compile == "reduce-overhead":  # torch.compile makes its own
        return T3_REFERENCE
    rotated = dataclasses.replace(T3_REFERENCE, rotate=cpu.rotate)
    if weight.dtype != torch.float32:
        return rotated
    return dataclasses.replace(rotated, norm=cpu.rms_norm, norm_linear=cpu.rms_norm_linear)
