"""The short switches of the front doors: what they make of EngineOptions, and which decoder they take."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from .config import ModelConfig
from .engine.first_trial import settled_for
from .engine.resolve import indexed, is_mlx, resolve
from .options import EngineOptions
from .presets import bundle, differing, find, tell_overridden, wants_meanflow
from .weights import hub
from .weights.files import FILES, MEANFLOW, decoder_file

logger = logging.getLogger(__name__)

TOGGLES = ("engine", "enable_compilation", "use_mixed_precision", "attention", "quantize", "preset")


def toggles(
    device: str | torch.device,
    config: ModelConfig,
    engine: EngineOptions | None = None,
    enable_compilation: bool = True,
    use_mixed_precision: bool = True,
    attention: str | None = None,
    quantize: str | None = None,
    preset: str | None = None,
) -> EngineOptions:
    """The short switches of the constructors, written into EngineOptions. Fields of `engine` that are not the defaults,
    and the switches, go before the preset."""
    if engine is not None and not isinstance(engine, EngineOptions):
        raise ValueError(f"engine is {type(engine).__name__}: an EngineOptions is needed")
    changes: dict[str, Any] = {}
    if not enable_compilation:
        changes["compile"] = None
    if not use_mixed_precision:
        changes.update(dtype="float32", s3gen_dtype="float32")
    if attention is not None:
        changes["attention"] = attention
    if quantize is not None:
        changes["quantize"] = quantize
    if preset is not None:
        return bundle(preset, indexed(device).type, config, differing(engine or EngineOptions()) | changes)
    return (engine or EngineOptions()).replace(**changes)


def settle(device: str | torch.device, config: ModelConfig, asked: EngineOptions, preset: str | None) -> EngineOptions:
    """Options without an "auto", and without what this device does not survive, once a warning has named what goes
    before the preset."""
    place = indexed(device)
    tell_overridden(preset, place.type, config, asked)
    resolved = resolve(asked, device)
    return resolved if is_mlx(device) else settled_for(resolved, place, config)


def fetch_decoder(family: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` with the path of the two-step decoder where they ask for it and the family's own repository has none.
    A preset does without it where the hub cannot be reached."""
    decoder, preset = options.get("decoder"), options.get("preset")
    if preset is not None:
        find(preset)  # what is misspelt is told ahead of a download
    if decoder_file(decoder, FILES[family]["s3gen"]) != MEANFLOW and not (decoder is None and wants_meanflow(preset)):
        return dict(options)
    if FILES[family]["s3gen"] == MEANFLOW:
        return dict(options)
    try:
        return {**options, "decoder": hub.download_decoder()}
    except hub.HubUnreachable as error:
        if decoder is not None:
            raise
        logger.warning("preset=%r goes on without the two-step decoder: %s", preset, error)
        return dict(options)


def random_decoder(options: Mapping[str, Any]) -> str | None:
    """The decoder that a random checkpoint is to have beside its own."""
    decoder = options.get("decoder")
    return "meanflow" if decoder == "meanflow" or (decoder is None and wants_meanflow(options.get("preset"))) else None
