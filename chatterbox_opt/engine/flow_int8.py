"""The products of the flow's transformer blocks in int8 on a CPU, which is approximate. They have nine tenths of the
flow's weights; convolutions, attention and the encoder keep their precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..models.conformer import HalfLinear
from ..models.estimator import Attention, Estimator, Transformer
from .digits import ignore_deprecation_warning
from .quantize import Int8Linear


class Int8Product(nn.Module):
    """Replaces a HalfLinear; returns `dtype`."""

    def __init__(self, linear: HalfLinear, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        self.product = Int8Linear(linear)
        if linear.bias is not None:
            self.product.bias = nn.Parameter(linear.bias.detach().float(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x.float()).to(self.dtype)


@torch.inference_mode(False)
def quantize_blocks(estimator: Estimator) -> None:
    """Replaces the products of `estimator`. Attention keeps the dtype of the weights that are replaced."""
    ignore_deprecation_warning()
    for part in estimator.modules():
        if isinstance(part, Attention) and isinstance(part.qkv, HalfLinear):
            part.qkv = Int8Product(part.qkv, part.qkv.weight.dtype)
            part.to_out = Int8Product(part.to_out)
        elif isinstance(part, Transformer) and isinstance(part.ff_in, HalfLinear):
            part.ff_in, part.ff_out = Int8Product(part.ff_in), Int8Product(part.ff_out)
