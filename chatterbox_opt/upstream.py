"""For programs that hold chatterbox-tts objects: subclasses of its classes, and `optimize(model)`.

The only module that needs chatterbox-tts.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from chatterbox.mtl_tts import ChatterboxMultilingualTTS
from chatterbox.tts import ChatterboxTTS
from chatterbox.tts_turbo import ChatterboxTurboTTS
from chatterbox.vc import ChatterboxVC

from . import mtl_tts, tts, tts_turbo, vc
from .base import Speaker
from .computing import computing
from .config import MODELS, ModelConfig
from .engine.resolve import indexed
from .presets import choose_decoder
from .switches import fetch_decoder
from .voice import Conditionals, T3Cond
from .weights.load import load_decoder

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .keywords import SwitchKeywords


class OptimizedChatterboxTTS(tts.OptimizedChatterboxTTS, ChatterboxTTS):
    pass


class OptimizedChatterboxMultilingualTTS(mtl_tts.OptimizedChatterboxMultilingualTTS, ChatterboxMultilingualTTS):
    pass


class OptimizedChatterboxTurboTTS(tts_turbo.OptimizedChatterboxTurboTTS, ChatterboxTurboTTS):
    pass


class OptimizedChatterboxVC(vc.OptimizedChatterboxVC, ChatterboxVC):
    pass


def optimize(
    model: Any, *, config: ModelConfig | None = None, decoder: str | Path | None = None,
    **options: Unpack[SwitchKeywords],
) -> Any:
    """Returns this package's model with the weights of a loaded chatterbox-tts object, taken from memory: shared if
    they are neither fused nor cast. `model` stays usable. `config` is needed only for sizes that were never published.
    `decoder` is a file, or "meanflow", which is read from the hub or its cache. A preset keeps the model's own decoder.
    Raises ValueError for other objects."""
    if not isinstance(model, (ChatterboxTTS, ChatterboxMultilingualTTS, ChatterboxTurboTTS, ChatterboxVC)):
        kind = type(model)
        raise ValueError(f"optimize() takes a chatterbox-tts model, not {kind.__module__}.{kind.__name__}")
    if isinstance(model, (Speaker, vc.OptimizedChatterboxVC)):
        raise ValueError("optimize(): this model is optimized already; give the upstream object it was made of")
    device = indexed(model.device)
    with computing(device):
        return _optimized(model, config, decoder, options)


def _optimized(
    model: Any, config: ModelConfig | None, decoder: str | Path | None, options: SwitchKeywords
) -> Any:
    if isinstance(model, ChatterboxVC):
        config = config or MODELS["tts"]
        s3gen, config = _s3gen(model, decoder, "vc", config, options.get("preset"))
        return OptimizedChatterboxVC(s3gen, model.device, model.ref_dict, config=config, **options)
    cls, family = _twin(model)
    config = config or MODELS[family]
    s3gen, config = _s3gen(model, decoder, family, config, options.get("preset"))
    extra = {"model_label": family.capitalize()} if cls is OptimizedChatterboxTurboTTS else {}
    conds = _conditionals(model.conds)
    return cls(model.t3, s3gen, model.ve, model.tokenizer, model.device, conds, config=config, **extra, **options)


def _s3gen(
    model: Any, decoder: str | Path | None, family: str, config: ModelConfig, preset: str | None
) -> tuple[Any, ModelConfig]:
    """Returns the model's own S3Gen or that of a file, and the config that fits it."""
    device, decoder = torch.device(model.device), choose_decoder(preset, decoder, there=False)
    if decoder == "meanflow" and not config.flow.meanflow:
        decoder = fetch_decoder(family, {"decoder": decoder})["decoder"]
    elif decoder in (None, "standard", "meanflow"):
        return model.s3gen, config
    return load_decoder(Path(), decoder, family, config, device)


def _twin(model: Any) -> tuple[type, str]:
    if isinstance(model, ChatterboxTurboTTS):
        return OptimizedChatterboxTurboTTS, "nano" if model.t3.dim == MODELS["nano"].t3.dim else "turbo"
    if isinstance(model, ChatterboxMultilingualTTS):
        return OptimizedChatterboxMultilingualTTS, "mtl"
    return OptimizedChatterboxTTS, "tts"


def _conditionals(conds: Any) -> Conditionals | None:
    """Returns a copy with detached tensors: upstream's voices carry an autograd graph."""
    if conds is None:
        return None
    detached = {k: v.detach() if torch.is_tensor(v) else v for k, v in vars(conds.t3).items()}
    known = {f.name for f in dataclasses.fields(T3Cond)}
    gen = {k: v.detach() if torch.is_tensor(v) else v for k, v in conds.gen.items()}
    return Conditionals(T3Cond(**{k: v for k, v in detached.items() if k in known}), gen)
