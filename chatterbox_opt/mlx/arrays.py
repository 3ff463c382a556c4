"""Torch tensors to MLX arrays and back. Both directions copy, so later writes to one do not show in the other."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import torch
from torch import Tensor

CPU = torch.device("cpu")


def to_mlx(tensor: Tensor) -> mx.array:
    """int64 becomes int32, which MLX indexes with."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:  # numpy has none
        return mx.array(tensor.float().numpy()).astype(mx.bfloat16)
    array = mx.array(tensor.numpy())
    return array.astype(mx.int32) if tensor.dtype == torch.long else array


def to_torch(array: mx.array) -> Tensor:
    """Waits for the result. int32 becomes int64. Goes through numpy: on Metal a DLPack capsule belongs to the GPU and
    would become an MPS tensor."""
    tensor = torch.from_numpy(np.array(array))
    return tensor.long() if array.dtype == mx.int32 else tensor


def dtype_of(name: str) -> mx.Dtype:
    """"float32" | "bfloat16" | "float16\""""
    return getattr(mx, name)
