"""T3's weights as plain tensors, whatever form engine/linears.py has given its linear layers."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.t3 import T3
from .quantize import Float16WeightLinear, Int4Linear, Int8Linear, Int8WeightLinear


@torch.no_grad()
def dense_state(t3: T3) -> dict[str, Tensor]:
    """Returns T3's state dict with the weights that quantized layers multiply by: rounded, and in float32."""
    state = t3.state_dict()
    for name, layer in t3.named_modules():
        found = _weight_and_bias(layer)
        if found is not None:
            own = zip(("weight", "bias"), found)
            state |= {f"{name}.{part}": tensor for part, tensor in own if tensor is not None}
    return state


def _weight_and_bias(layer: torch.nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """None: the layer's weight is in its state dict already."""
    if isinstance(layer, Float16WeightLinear):
        return torch.ops.quantized.linear_unpack_fp16(layer.packed)
    if isinstance(layer, Int8Linear):
        return torch.ops.quantized.linear_unpack(layer.packed)[0].dequantize(), layer.bias
    if isinstance(layer, Int8WeightLinear):
        return layer.weight.float() * layer.scale.float()[:, None], layer.bias
    if isinstance(layer, Int4Linear):  # its layout differs by processor, its product with the unit matrix does not
        unit = torch.eye(layer.in_features, device=layer.packed.device)
        bias = 0 if layer.bias is None else layer.bias
        return (layer(unit).float() - bias).t().contiguous(), layer.bias
    return None
