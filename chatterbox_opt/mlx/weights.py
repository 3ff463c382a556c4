"""Loads a network's weights into MLX, one tensor after another: each is cast, and quantized if asked for, before the
next is read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import torch
from torch import Tensor, nn

from ..engine.linears import give_back_memory
from .arrays import to_mlx, to_torch

GROUP = 64  # weights that share one scale and offset
BITS = {None: None, "int8": 8, "int4": 4}
BETWEEN = 8  # tensors between two returns of freed memory to the system: about one layer of Llama
BACKBONE = "tfmr."  # only its linear layers are quantized; embeddings and head keep their precision, as in torch


@dataclass(frozen=True)
class Linear:
    """x (..., K) -> (..., N), in the precision of the weights, whatever x has."""

    weight: mx.array  # (N, K), or quantized digits
    bias: mx.array | None = None
    scales: tuple[mx.array, mx.array] | None = None  # and offsets, (N, K / GROUP) each, if quantized
    bits: int | None = None

    def __call__(self, x: mx.array) -> mx.array:
        if self.scales is None:
            return self.add_bias(x.astype(self.weight.dtype) @ self.weight.T)
        y = mx.quantized_matmul(x, self.weight, *self.scales, transpose=True, group_size=GROUP, bits=self.bits)
        return self.add_bias(y)

    def add_bias(self, y: mx.array) -> mx.array:
        return y if self.bias is None else y + self.bias


class Weights:
    """Arrays by the tensor names of a torch network. Raises ValueError if a tensor is missing, unknown or has another
    shape."""

    def __init__(
        self, make: Callable[[], nn.Module], named: Iterable[tuple[str, Tensor]], dtype: mx.Dtype,
        quantize: str | None = None, in_float32: Callable[[nn.Module], Collection[str]] = lambda twin: (),
    ) -> None:
        """`make` builds the torch network; `in_float32(network)` names the tensors that are not cast to `dtype`."""
        with torch.device("meta"):
            twin = make()
        self._wanted = {name: tuple(tensor.shape) for name, tensor in twin.state_dict().items()}
        self._products = {f"{name}.weight" for name, module in twin.named_modules() if isinstance(module, nn.Linear)}
        self._network, self._in_float32 = type(twin).__name__, frozenset(in_float32(twin))
        self.dtype, self._bits = dtype, BITS[quantize]
        self._arrays: dict[str, mx.array] = {}
        self._packed: dict[str, tuple[mx.array, mx.array, mx.array]] = {}
        kept = mx.set_cache_limit(0)  # buffers of one tensor's casting do not fit the next tensor
        try:
            for count, (name, tensor) in enumerate(named):
                self._add(name, tensor)
                if count % BETWEEN == 0:
                    give_back_memory()
        finally:
            mx.set_cache_limit(kept)
        if missing := self._wanted.keys() - self._arrays.keys() - self._packed.keys():
            raise ValueError(f"{self._network} lacks {len(missing)} tensors, the first {min(missing)}")

    def _add(self, name: str, tensor: Tensor) -> None:
        if self._wanted.get(name) != tuple(tensor.shape):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, {self._wanted.get(name, 'no such tensor')} is "
                             f"{self._network}'s")
        array = to_mlx(tensor).astype(mx.float32 if name in self._in_float32 else self.dtype)
        packs = self._bits and name in self._products and name.startswith(BACKBONE) and array.shape[1] % GROUP == 0
        if packs:
            self._packed[name] = mx.quantize(array, group_size=GROUP, bits=self._bits)
            mx.eval(self._packed[name])
        else:
            self._arrays[name] = array
            mx.eval(array)

    def __getitem__(self, name: str) -> mx.array:
        return self._arrays[name]

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yields torch copies of all arrays in float32; of a quantized one its scales and offsets."""
        parts = {f"{name}.{k}": packed[k] for name, packed in self._packed.items() for k in (1, 2)}
        for name, array in (self._arrays | parts).items():
            yield name, to_torch(array.astype(mx.float32))

    def lend(self, network: nn.Module) -> None:
        """Makes the network's float32 tensors views of MLX's, so that these weights are in memory once."""
        for name, tensor in network.state_dict(keep_vars=True).items():
            array = self._arrays.get(name)
            if array is not None and array.dtype == mx.float32 and tensor.dtype == torch.float32:
                tensor.data = torch.from_numpy(np.array(array, copy=False))

    def linear(self, name: str) -> Linear:
        bias = self._arrays.get(f"{name}.bias")
        if (packed := self._packed.get(f"{name}.weight")) is not None:
            weight, scales, offsets = packed
            return Linear(weight, bias, (scales, offsets), self._bits)
        return Linear(self._arrays[f"{name}.weight"], bias)
