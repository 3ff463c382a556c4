"""Bounds for what torch keeps per shape on a CPU: each length of speech has shapes of its own."""

from __future__ import annotations

import os

import torch

# oneDNN keeps up to 1,024 prepared operations, and torch's bridge to it as many again in every thread. A mel and its
# sound use about a hundred, over and over; those of another length are not met again soon. 30 paragraphs of the small
# model, before any length was padded: 0.7 GB instead of 1.5, in the same time; with 16 of each a fifth slower.
CAPACITIES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "64"}


def bound_shape_caches(device: torch.device, half: bool = False) -> None:
    """Has an effect before the first product of the process that goes through oneDNN; a program's own setting stays.
    In half precision lengths are padded (GRAIN in mel.py and wav.py): oneDNN's own capacity holds what all of them and
    all numbers of cores need, which are met again."""
    if device.type == "cpu":
        for name, capacity in CAPACITIES.items():
            if not (half and name.startswith("ONEDNN")):
                os.environ.setdefault(name, capacity)
