"""engine.wav with the network that follows the source in MLX."""

from __future__ import annotations

import torch
from torch import Tensor

from ..engine.wav import WavRunner
from ..models import hift as torch_hift
from ..options import EngineOptions
from .arrays import to_mlx, to_torch
from .hift import Hift


class MlxWavRunner(WavRunner):
    """Fundamental frequency and source stay in torch, on the CPU: errors of phase add up over a sound, so phases are
    summed in float64, which Metal lacks."""

    def __init__(self, hift: torch_hift.Hift, options: EngineOptions) -> None:
        super().__init__(hift, options.replace(s3gen_dtype="float32", short_convs=False))
        self.network = Hift(hift.cfg, hift.state_dict().items(), options.s3gen_dtype)

    def _fits(self, rows: int, size: int) -> bool:
        return rows * size <= self.options.wav_chunk

    def _run(self, size: int, parts: list[tuple[Tensor, Tensor]]) -> Tensor:
        mel, spectrum = (to_mlx(torch.stack(group)) for group in zip(*parts))
        return to_torch(self.network.decode(mel.swapaxes(1, 2), spectrum))
