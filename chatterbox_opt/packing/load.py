"""Loads a checkpoint folder, packed or not."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..config import MODELS, ModelConfig
from ..engine.resolve import indexed, is_mlx, resolve
from ..executor import load_t3
from ..presets import wants_own_decoder
from ..switches import switch_options
from ..weights.load import Loaded, existing, load_folder, of_family, read_config
from ..weights.packed import Packed, is_packed, load_packed, read_packed, same_file
from .cache import cached
from .forms import as_packed
from .make import stamp


def load_any(
    folder: str | Path,
    family: str,
    device: Any,
    switches: dict[str, Any],
    t3_file: str | Path | None = None,
    decoder: str | Path | None = None,
    cache_packed: bool | str | Path = False,
    config: ModelConfig | None = None,
) -> tuple[Loaded, dict[str, Any]]:
    """Returns the networks and the switches to run them with. `switches` are a constructor's SWITCHES. `cache_packed`
    stores the packed weights in the user's cache folder, or in the given one, and later loads these. `config` replaces
    the folder's."""
    folder = existing(folder)
    if config is not None and (cache_packed or is_packed(folder)):
        raise ValueError("config= is for checkpoints as they are published, neither packed nor to be packed: "
                         "config.json in the folder says the same, to packing too")
    config = read_config(folder, family) if config is None else of_family(config, family, "config=")
    place = indexed(device)
    if is_mlx(device) and is_packed(folder):
        raise ValueError("device='mlx' reads checkpoints as they are published, not packed ones")
    if is_packed(folder):
        packed = read_packed(folder)
        if t3_file is not None and not made_from(packed, Path(t3_file)):
            raise ValueError(f"{folder} is packed, its T3 made from {packed.t3}: load {t3_file} with the checkpoint "
                             "itself, or pack that")
        preset, own = switches.get("preset"), MODELS[config.family].flow
        if decoder is None and wants_own_decoder(preset) and config.flow.meanflow != own.meanflow:
            raise ValueError(f"{folder} is packed with the two-step decoder, and preset={preset!r} means the model's "
                             "own: load the checkpoint itself, or pack that")
    elif cache_packed and (found := cached(folder, family, place, t3_file, decoder, switches, cache_packed)):
        (folder, packed), decoder = found, None
    else:
        make_t3 = partial(load_t3, device=device, options=resolve(switch_options(device, config, **switches), device))
        return load_folder(folder, family, place, torch.float32, t3_file, decoder, make_t3, config), switches
    switches = as_packed(folder, packed.form, place, config, switches)
    return load_packed(folder, packed, family, place, decoder), switches


def made_from(packed: Packed, t3_file: Path) -> bool:
    """Whether this is the file of its T3: by a name alone, or by what was seen of it when it was packed."""
    seen = packed.source.get(t3_file.name)
    return same_file(t3_file, packed.t3) or (t3_file.is_file() and seen is not None and seen == stamp(t3_file))
