"""A folder, packed or not -> networks, and the switches that these are to be run with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..engine.resolve import resolve, stored_dtype
from ..switches import toggles
from ..weights.load import Loaded, load_folder
from ..weights.packed import is_packed, load_packed, read_packed, same_file
from .cache import cached
from .forms import as_packed


def load_any(
    folder: str | Path,
    family: str,
    device: torch.device,
    switches: dict[str, Any],
    t3_file: str | Path | None = None,
    decoder: str | Path | None = None,
    cache_packed: bool | str | Path = False,
) -> tuple[Loaded, dict[str, Any]]:
    """`switches` are a constructor's TOGGLES. `cache_packed` keeps what is made of the weights, in the user's cache
    folder or in one of your own, and loads that from then on."""
    folder = Path(folder)
    if is_packed(folder):
        packed = read_packed(folder)
        if t3_file is not None and not same_file(t3_file, packed.t3):
            raise ValueError(f"{folder} is packed, its T3 made from {packed.t3}: load {t3_file} with the checkpoint "
                             "itself, or pack that")
    elif cache_packed and (found := cached(folder, family, device, t3_file, decoder, switches, cache_packed)):
        (folder, packed), decoder = found, None
    else:
        dtype = stored_dtype(resolve(toggles(device, **switches), device), device)
        return load_folder(folder, family, device, dtype, t3_file, decoder), switches
    switches = as_packed(folder, packed.form, device, switches)
    return load_packed(folder, packed, family, device, decoder), switches
