"""Networks of chatterbox-tts become this package's."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..engine.resolve import indexed
from ..executor import load_t3, t3_on_device
from ..models.s3gen import S3Gen
from ..models.t3 import T3
from ..models.voice_encoder import VoiceEncoder
from ..options import EngineOptions
from ..weights import layout
from ..weights.load import build_s3gen, build_voice_encoder
from .part import Part


def own_t3(network: Any, config: ModelConfig, device: Any, options: EngineOptions) -> Any:
    """The text vocabulary may have any size: fine-tuned models add characters."""
    network = _lent(network, options, indexed(device))
    state = _foreign(network, T3)
    if state is None:
        return t3_on_device(network, device, options)
    if "text_emb.weight" in state:
        config = config.with_text_vocab(len(state["text_emb.weight"]))
    return load_t3(state, config, device, options)


def own_s3gen(network: Any, config: ModelConfig, device: torch.device, options: EngineOptions) -> Any:
    network = _lent(network, options, device)
    state = _foreign(network, S3Gen)
    if state is None:
        return network
    return build_s3gen(state, config.with_meanflow(layout.MEANFLOW_KEY in state), device)


def own_voice_encoder(network: Any, config: ModelConfig, device: torch.device) -> Any:
    network = _lent(network, None, device)
    state = _foreign(network, VoiceEncoder)
    return network if state is None else build_voice_encoder(state, config, device)


def _lent(network: Any, options: EngineOptions | None, device: torch.device) -> Any:
    """Unwraps parts, and what torch's compiler makes of them: they are compiled or captured as options say."""
    network = inspect.unwrap(network) if callable(network) else network  # of a part, a function is made
    network = getattr(network, "_orig_mod", network)  # of a module, another module
    return network.lent(options, device) if isinstance(network, Part) else network


def _foreign(network: Any, own: type[nn.Module]) -> dict[str, Tensor] | None:
    """Returns the state dict of a torch module that is not this package's."""
    if isinstance(network, dict):
        return network
    if network is None or isinstance(network, own) or type(network).__module__.startswith("chatterbox_opt.mlx."):
        return None
    if not isinstance(network, nn.Module):
        raise TypeError(f"{type(network).__name__} is no {own.__name__}, and no torch module with the weights of one")
    # the compiler names what it wraps, a whole network or a module within
    return {name.replace("_orig_mod.", ""): tensor.detach() for name, tensor in network.state_dict().items()}
