"""What of the flow is computed in 16 bits."""

from __future__ import annotations

import torch
from torch import nn

from ..models.conformer import HalfLinear, WindowConv


def in_half(module: nn.Module, dtype: torch.dtype) -> None:
    """Casts products and convolutions of `module` to `dtype`. Embeddings of ids and time, the ODE's state and norms
    stay in float32: in half precision they turn speech into noise."""
    for part in module.modules():
        if isinstance(part, (HalfLinear, WindowConv)):
            part.to(dtype)
