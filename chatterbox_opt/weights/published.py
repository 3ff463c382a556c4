"""The way back from keymap.py, for T3: its tensors under the names and in the shapes of the published files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from ..config import T3Config
from .keymap import transpose

QKV, GATE_UP = "self_attn.qkv_proj.weight", "mlp.gate_up_proj.weight"
STORED_TRANSPOSED = re.compile(r"tfmr\.h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")


def published_t3(own: Mapping[str, Tensor], config: T3Config) -> dict[str, Tensor]:
    """`own`: all tensors of a models.t3.T3. What inference never reads, such as text_head, is not among the result."""
    split = _gpt2 if config.is_gpt else _llama(config.head_dim)
    return {name: tensor for key, value in own.items() for name, tensor in split(key, value).items()}


def _llama(head_dim: int) -> Callable[[str, Tensor], dict[str, Tensor]]:
    def apart(paired: Tensor) -> Tensor:
        """Undoes keymap.pair_heads for q or k."""
        return paired.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)

    def split(key: str, value: Tensor) -> dict[str, Tensor]:
        if key.endswith(QKV):
            q, k, v = value.chunk(3)
            layer = key.removesuffix("qkv_proj.weight")
            return {f"{layer}{name}_proj.weight": w for name, w in zip("qkv", (apart(q), apart(k), v))}
        if key.endswith(GATE_UP):
            layer = key.removesuffix("gate_up_proj.weight")
            return {f"{layer}{name}_proj.weight": w for name, w in zip(("gate", "up"), value.chunk(2))}
        return {key: value}

    return split


def _gpt2(key: str, value: Tensor) -> dict[str, Tensor]:
    return {key: transpose(value) if STORED_TRANSPOSED.fullmatch(key) else value}


