"""Mini's sizes, and networks whose parameters have the published names during training."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from chatterbox_opt.config import (
    CampplusConfig,
    FlowConfig,
    HiftConfig,
    ModelConfig,
    S3TokenizerConfig,
    T3Config,
    VoiceEncoderConfig,
)
from chatterbox_opt.weights.keymap import Rule, remap

from .sentences import LONGEST

CONFIG = ModelConfig(
    "tts",
    clones=False,
    max_chars=LONGEST,
    t3=T3Config(
        dim=128, layers=7, heads=4, ff=448, text_vocab=256, speech_vocab=6563, text_positions=302,
        speech_positions=1004, max_positions=2048, prompt_tokens=10, perceiver_queries=2, perceiver_heads=4,
    ),
    voice_encoder=VoiceEncoderConfig(hidden=32, layers=1),
    s3_tokenizer=S3TokenizerConfig(dim=64, heads=2, layers=2),
    campplus=CampplusConfig(head_channels=4, init_channels=16, growth=4, block_layers=(2, 2, 2)),
    flow=FlowConfig(
        dim=128, heads=4, ff=256, layers=2, up_layers=2, channels=112, est_heads=2, est_head_dim=48, mid_blocks=2,
        block_layers=1,
    ),
    hift=HiftConfig(channels=96, f0_channels=64),
)
LIMIT = 20_000_000  # bytes of the whole asset


class Published(nn.Module):
    """A network of the package, trained under the names and in the shapes of a checkpoint file.

    At each step the loader's rules convert them to the package's parameters, and gradients go back through the rules.
    So the file is the training state, and no second conversion exists.
    """

    def __init__(self, net: nn.Module, shapes: dict[str, tuple[int, ...]], rules: Iterable[Rule], seed: int) -> None:
        super().__init__()
        self.rules = tuple(rules)
        self.net = [net]  # in a list, so that its own parameters are not registered
        noise = torch.Generator().manual_seed(seed)
        self.names = {name.replace(".", "/"): name for name in shapes}
        for key, name in self.names.items():
            self.register_parameter(key, nn.Parameter(initial(name, shapes[name], noise)))

    def published(self) -> dict[str, Tensor]:
        return {name: getattr(self, key) for key, name in self.names.items()}

    def state(self) -> dict[str, Tensor]:
        return remap(self.published(), self.rules)

    def run(self, *inputs: Any, change: dict[str, Tensor] | None = None) -> Any:
        """Runs the network on its inputs; `change` replaces parameters by their names in the package."""
        return functional_call(self.net[0], self.state() | (change or {}), inputs)


def initial(name: str, shape: tuple[int, ...], noise: torch.Generator) -> Tensor:
    """Initializes linear and convolution weights by fan-in, tables with small values, norms with one."""
    if name.endswith(("bias", "pos_bias_u", "pos_bias_v")):
        return torch.zeros(shape)
    if name.endswith("alpha") or (len(shape) == 1 and name.endswith("weight")):
        return torch.ones(shape)
    if name.endswith("original0"):  # the magnitude of a weight-normed convolution: set by `set_magnitudes`
        return torch.ones(shape)
    values = torch.randn(shape, generator=noise)
    if "emb" in name.rsplit(".", 2)[-2] or name.endswith("pre_attention_query"):
        return values * 0.05
    return values / math.sqrt(math.prod(shape[1:]))


def set_magnitudes(net: Published) -> None:
    """Sets every weight norm to the magnitude of its direction."""
    with torch.no_grad():
        for key, name in net.names.items():
            if name.endswith("original0"):
                v = getattr(net, key[:-1] + "1")
                getattr(net, key).copy_(v.flatten(1).norm(dim=1).view(-1, 1, 1))
