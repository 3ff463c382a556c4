"""The switches of the constructors (preset, quantize, decoder, ...), and the EngineOptions that follow from them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .checks import unknown_argument, usable_device
from .config import MODELS, ModelConfig
from .engine.digits import has_quantized_tensors
from .engine.first_trial import usable_options
from .engine.resolve import indexed, is_mlx, resolve
from .options import EngineOptions
from .presets import bundle, differing, wants_meanflow, warn_of_overrides
from .weights import hub
from .weights.files import FILES, MEANFLOW, decoder_file

logger = logging.getLogger(__name__)

SWITCHES = ("engine", "enable_compilation", "use_mixed_precision", "attention", "quantize", "preset")
OF_CONVERTERS = ("enable_watermark", "config", "decoder")  # what the loaders of voice conversion take besides
OF_SPEAKERS = (*OF_CONVERTERS, "cache_packed")
INSIDE = ("model_label",)  # what loaders tell the constructor


def ready(device: Any, family: str, options: Mapping[str, Any], known: Sequence[str] = OF_SPEAKERS) -> Any:
    """Returns the device to use. Raises what loading with these options would raise, ahead of a download and of reading
    files of gigabytes."""
    device = usable_device(device)
    if unknown := [name for name in options if name not in (*SWITCHES, *known, *INSIDE)]:
        name = unknown[0]
        raise TypeError(
            f"{name}= is a field of EngineOptions: engine=EngineOptions({name}=...)"
            if name in EngineOptions.__dataclass_fields__
            else unknown_argument(name, (*SWITCHES, *known), "loading takes")
        )
    if is_mlx(device) and options.get("cache_packed"):
        raise ValueError("device='mlx' reads checkpoints as they are published: leave out cache_packed, or give 'mps'")
    asked = {name: options[name] for name in SWITCHES if name in options}
    resolve(switch_options(device, options.get("config") or MODELS[family], **asked), device)
    return device


def switch_options(
    device: str | torch.device,
    config: ModelConfig,
    engine: EngineOptions | None = None,
    enable_compilation: bool = True,
    use_mixed_precision: bool = True,
    attention: str | None = None,
    quantize: str | None = None,
    preset: str | None = None,
) -> EngineOptions:
    """Returns EngineOptions with the constructors' switches. Fields of `engine` that differ from the defaults, and the
    switches, override the preset."""
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
        explicit = differing(engine or EngineOptions()) | changes
        return bundle(preset, indexed(device).type, config, explicit, _has_int8(device))
    return (engine or EngineOptions()).replace(**changes)


def _has_int8(device: str | torch.device) -> bool:
    """Whether T3 can be quantized there, as far as a preset would."""
    return is_mlx(device) or has_quantized_tensors()


def resolve_switches(
    device: str | torch.device, config: ModelConfig, asked: EngineOptions, preset: str | None
) -> EngineOptions:
    """Returns options without "auto" and without parts that crash on this device; warns of options that override the
    preset."""
    place = indexed(device)
    warn_of_overrides(preset, place.type, config, asked, _has_int8(device))
    resolved = resolve(asked, device)
    return resolved if is_mlx(device) else usable_options(resolved, place, config)


def fetch_decoder(family: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `options` with the path of the two-step decoder, if they ask for it and the family's own repository has
    none. A preset does without it if the hub is unreachable."""
    decoder, preset = options.get("decoder"), options.get("preset")
    if decoder_file(decoder, FILES[family]["s3gen"]) != MEANFLOW and not (decoder is None and wants_meanflow(preset)):
        return dict(options)
    if FILES[family]["s3gen"] == MEANFLOW or (decoder not in (None, "meanflow") and Path(decoder).is_file()):
        return dict(options)
    try:
        return {**options, "decoder": hub.download_decoder()}
    except hub.HubUnreachable as error:
        if decoder is not None:
            raise
        logger.warning("preset=%r goes on without the two-step decoder: %s", preset, error)
        return dict(options)


def random_decoder(options: Mapping[str, Any]) -> str | None:
    """Returns the decoder that a random checkpoint needs besides its own."""
    decoder = options.get("decoder")
    return "meanflow" if decoder == "meanflow" or (decoder is None and wants_meanflow(options.get("preset"))) else None
