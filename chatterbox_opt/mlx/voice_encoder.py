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
        """`named`: every tensor of models.voice_encoder.VoiceEncoder."""
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
        self.of_input, self.of_hidden = (mx.contiguous(w[f"lstm.weight_{kind}_l{index}"].T) for kind in ("ih", "hh"))
        self.bias = w[f"lstm.bias_ih_l{index}"] + w[f"lstm.bias_hh_l{index}"]
        mx.eval(self.of_input, self.of_hidden, self.bias)

    def __call__(self, x: mx.array) -> mx.array:
        """(T, N, C) -> (T, N, H), from a state of zeros."""
        outputs = []
        hidden = cell = mx.zeros((x.shape[1], len(self.of_hidden)))
        for at_once in x @ self.of_input + self.bias:
            take_in, forget, update, give_out = mx.split(at_once + hidden @ self.of_hidden, 4, axis=-1)
            cell = mx.sigmoid(forget) * cell + mx.sigmoid(take_in) * mx.tanh(update)
            hidden = mx.sigmoid(give_out) * mx.tanh(cell)
            outputs.append(hidden)
        return mx.stack(outputs)
