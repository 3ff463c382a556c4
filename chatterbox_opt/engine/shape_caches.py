"""Bounds for what torch keeps per shape on a CPU: each length of speech has shapes of its own."""

from __future__ import annotations

import os

import torch

# oneDNN keeps up to 1,024 prepared operations, and torch's bridge to it as many again in every thread. A mel and its
# sound use about a hundred, over and over; in half precision all lengths together about four hundred, as they are
# padded (GRAIN of mel.py and wav.py); in float32 those of another length are not met again soon.
CAPACITIES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "512", "LRU_CACHE_CAPACITY": "64"}


def bound_shape_caches(device: torch.device) -> None:
    """Has an effect before the first product of the process that goes through oneDNN; a program's own setting stays."""
    if device.type == "cpu":
        for name, capacity in CAPACITIES.items():
            os.environ.setdefault(name, capacity)
