"""Torch's tensors as MLX's arrays, and back. Both copy: neither sees what the other writes later."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import torch
from torch import Tensor

CPU = torch.device("cpu")


def to_mlx(tensor: Tensor) -> mx.array:
    """Whole numbers come as int32, which MLX indexes with."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:  # numpy has none
        return mx.array(tensor.float().numpy()).astype(mx.bfloat16)
    array = mx.array(tensor.numpy())
    return array.astype(mx.int32) if tensor.dtype == torch.long else array


def to_torch(array: mx.array) -> Tensor:
    """Waits for it. Whole numbers come as torch counts, in 64 bits. By numpy: under Metal a DLPack capsule is of the
    GPU, and would become a tensor of MPS."""
    tensor = torch.from_numpy(np.array(array))
    return tensor.long() if array.dtype == mx.int32 else tensor


def dtype_of(name: str) -> mx.Dtype:
    """"float32" | "bfloat16" | "float16\""""
    return getattr(mx, name)
