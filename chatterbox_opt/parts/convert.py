"""Networks of chatterbox-tts become this package's."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..executor import load_t3, t3_on_device
from ..models.s3gen import S3Gen
from ..models.t3 import T3
from ..models.voice_encoder import VoiceEncoder
from ..options import EngineOptions
from ..weights.load import build_s3gen, build_voice_encoder
from .part import Part


def own_t3(network: Any, config: ModelConfig, device: Any, options: EngineOptions) -> Any:
    """The text vocabulary may have any size: fine-tuned models add characters."""
    network = _bare(network)
    state = _foreign(network, T3)
    if state is None:
        return t3_on_device(network, device, options)
    if "text_emb.weight" in state:
        config = config.with_text_vocab(len(state["text_emb.weight"]))
    return load_t3(state, config, device, options)


def own_s3gen(network: Any, config: ModelConfig, device: torch.device) -> Any:
    network = _bare(network)
    state = _foreign(network, S3Gen)
    return network if state is None else build_s3gen(state, config, device)


def own_voice_encoder(network: Any, config: ModelConfig, device: torch.device) -> Any:
    network = _bare(network)
    state = _foreign(network, VoiceEncoder)
    return network if state is None else build_voice_encoder(state, config, device)


def _bare(network: Any) -> Any:
    """Unwraps parts, and what torch's compiler makes of them: they are compiled or captured as options say."""
    network = inspect.unwrap(network) if callable(network) else network  # of a part, a function is made
    network = getattr(network, "_orig_mod", network)  # of a module, another module
    return network.network if isinstance(network, Part) else network


def _foreign(network: Any, own: type[nn.Module]) -> dict[str, Tensor] | None:
    """Returns the state dict of a torch module that is not this package's."""
    if not isinstance(network, nn.Module) or isinstance(network, own):
        return None
    return {name: tensor.detach() for name, tensor in network.state_dict().items()}
