"""Bounds for what torch keeps per shape on a CPU: each length of speech has shapes of its own."""

from __future__ import annotations

import os

import torch

# A mel and its sound use about a hundred prepared operations, over and over, on one core and on several. Their lengths
# are padded (GRAIN in mel.py and wav.py), so that oneDNN's cache can hold what all lengths need, which its own 1,024 do
# not. torch's bridge to it keeps 1,024 more in every thread, for nothing.
CAPACITIES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "2048", "LRU_CACHE_CAPACITY": "64"}


def bound_shape_caches(device: torch.device) -> None:
    """Has an effect before the first product of the process that goes through oneDNN; a program's own setting stays."""
    if device.type == "cpu":
        for name, capacity in CAPACITIES.items():
            os.environ.setdefault(name, capacity)
