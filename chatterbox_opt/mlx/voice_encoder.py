"""models.voice_encoder.VoiceEncoder in MLX. Mels, windows and their mean stay torch's, on the CPU."""

from __future__ import annotations

from collections.abc import Iterable

import mlx.core as mx
import torch
from torch import Tensor

from ..config import VoiceEncoderConfig
from ..models.voice_encoder import VoiceEncoder as TorchVoiceEncoder
from .arrays import to_mlx, to_torch
from .weights import Weights


class VoiceEncoder:
    def __init__(self, config: VoiceEncoderConfig, named: Iterable[tuple[str, Tensor]]) -> None:
        """`named`: all tensors of a models.voice_encoder.VoiceEncoder."""
        w = Weights(lambda: TorchVoiceEncoder(config), named, mx.float32)
        self.layers = [LstmLayer(w, i) for i in range(config.layers)]
        self.proj = w.linear("proj")

    @torch.inference_mode()
    def __call__(self, windows: Tensor) -> Tensor:
        """(N, 160, 40) -> (N, 256), each of length 1."""
        x = to_mlx(windows).swapaxes(0, 1)
        for layer in self.layers:
            x = layer(x)
        raw = mx.maximum(self.proj(x[-1]), 0)
        return to_torch(raw / mx.linalg.norm(raw, axis=1, keepdims=True))


class LstmLayer:
    def __init__(self, w: Weights, index: int) -> None:
        self.input_weight = mx.contiguous(w[f"lstm.weight_ih_l{index}"].T)
        self.hidden_weight = mx.contiguous(w[f"lstm.weight_hh_l{index}"].T)
        self.bias = w[f"lstm.bias_ih_l{index}"] + w[f"lstm.bias_hh_l{index}"]
        mx.eval(self.input_weight, self.hidden_weight, self.bias)

    def __call__(self, x: mx.array) -> mx.array:
        """(T, N, C) -> (T, N, H), from a state of zeros."""
        outputs = []
        hidden = cell = mx.zeros((x.shape[1], len(self.hidden_weight)))
        for from_input in x @ self.input_weight + self.bias:
            enter, forget, new, leave = mx.split(from_input + hidden @ self.hidden_weight, 4, axis=-1)  # torch's order
            cell = mx.sigmoid(forget) * cell + mx.sigmoid(enter) * mx.tanh(new)
            hidden = mx.sigmoid(leave) * mx.tanh(cell)
            outputs.append(hidden)
        return mx.stack(outputs)
