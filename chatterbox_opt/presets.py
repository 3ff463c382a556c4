"""Presets: named bundles of EngineOptions and a decoder. The table PRESETS defines them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .config import ModelConfig
from .options import EngineOptions

logger = logging.getLogger(__name__)

# With fewer weights in T3's blocks int8 is slower than fp16: they fit in the processor's cache anyway, and each product
# first scales its input rows (mini has 2 million, Nano 85 million).
LARGE_T3 = 16_000_000


def differing(options: EngineOptions) -> dict[str, Any]:
    """Returns the fields that differ from their defaults."""
    usual = vars(EngineOptions())
    return {name: value for name, value in vars(options).items() if value != usual[name]}


@dataclass(frozen=True)
class Preset:
    """Fields of EngineOptions, by the condition under which they apply."""

    always: Mapping[str, Any] = field(default_factory=dict)
    on_cpu_large: Mapping[str, Any] = field(default_factory=dict)  # on a CPU, if T3 has LARGE_T3 weights or more
    guided: Mapping[str, Any] = field(default_factory=dict)  # if the decoder is not the two-step one
    decoder: str | None = None  # "meanflow", if its file exists | "standard" | None: no change
    approximate: bool = False

    def changes(self, device_type: str, config: ModelConfig, int8: bool = True) -> dict[str, Any]:
        """`int8`: whether T3 can be in int8 on a CPU."""
        large = device_type == "cpu" and config.t3.block_weights >= LARGE_T3 and int8
        return {**self.always, **(self.on_cpu_large if large else {}), **({} if config.flow.meanflow else self.guided)}


SIZES = ("slots", "cache_len")  # memory, not computation
EXACT = {name: value for name, value in vars(EngineOptions.exact()).items() if name not in SIZES}
PRESETS = {
    "exact": Preset(always=EXACT, decoder="standard"),
    "balanced": Preset(),
    "fast": Preset(
        always=dict(prompt_seconds=5.0),  # the flow computes the prompt's frames in every step
        on_cpu_large=dict(quantize="int8"),
        guided=dict(flow_steps=6, cfm_schedule="sway"),
        decoder="meanflow",
        approximate=True,
    ),
}


def find(name: str) -> Preset:
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"preset={name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def wants_meanflow(preset: str | None) -> bool:
    return preset is not None and find(preset).decoder == "meanflow"


def wants_own_decoder(preset: str | None) -> bool:
    return preset is not None and find(preset).decoder == "standard"


def choose_decoder(preset: str | None, decoder: str | Path | None, there: bool) -> str | Path | None:
    """Returns `decoder` if it is given, else the preset's; `there`: the two-step decoder's file exists."""
    if decoder is None:
        return "meanflow" if there and wants_meanflow(preset) else None
    if wants_own_decoder(preset) and decoder != "standard":
        logger.warning("preset=%r means the checkpoint's own decoder; decoder=%r overrides it", preset, str(decoder))
    return decoder


def bundle(
    preset: str, device_type: str, config: ModelConfig, explicit: Mapping[str, Any], int8: bool = True
) -> EngineOptions:
    """Returns the preset's options, overridden by `explicit` ones."""
    return EngineOptions().replace(**{**find(preset).changes(device_type, config, int8), **explicit})


def warn_of_overrides(
    preset: str | None, device_type: str, config: ModelConfig, options: EngineOptions, int8: bool = True
) -> None:
    """Warns of fields in which `options`, with "auto" not yet resolved, differ from the preset."""
    if preset is None:
        return
    said = find(preset).changes(device_type, config, int8)
    if not int8 and find(preset).changes(device_type, config) != said and options.quantize is None:
        logger.warning("preset=%r goes on without int8, which this torch no longer has on a CPU", preset)
    if over := [f"{k}={getattr(options, k)!r} and not {v!r}" for k, v in said.items() if getattr(options, k) != v]:
        logger.warning("preset=%r is overridden by other arguments: %s", preset, ", ".join(over))
