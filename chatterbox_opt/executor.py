"""Chooses torch or MLX by device. `mlx/` is imported here only, and only for device="mlx"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .config import ModelConfig
from .engine.mel import MelRunner
from .engine.resolve import indexed, is_mlx, stored_dtype
from .engine.speaking import Speaking
from .engine.tokens import TokenRunner
from .engine.wav import WavRunner
from .models.s3gen import S3Gen
from .models.t3 import T3
from .models.voice_encoder import VoiceEncoder
from .options import EngineOptions
from .weights.load import Source, build_t3, read_t3


def load_t3(source: Source | dict[str, Tensor], config: ModelConfig, device: Any, options: EngineOptions) -> Any:
    """Loads T3 from a checkpoint or a state dict. `options` hold no "auto"."""
    if is_mlx(device):
        from .mlx.t3 import T3 as MlxT3

        return MlxT3(config.t3, read_t3(source, config), options.dtype, options.quantize)
    place = indexed(device)
    return build_t3(source, config, place, stored_dtype(options, place))


def t3_on_device(t3: Any, device: Any, options: EngineOptions) -> Any:
    """Returns MLX's copy of a torch T3 for device="mlx", and any other T3 unchanged."""
    if is_mlx(device) and isinstance(t3, T3):
        from .mlx.t3 import T3 as MlxT3

        return MlxT3(t3.config, t3.state_dict().items(), options.dtype, options.quantize)
    return t3


def voice_encoder(ve: VoiceEncoder | None, config: ModelConfig, device: Any) -> Callable[[Tensor], Tensor] | None:
    """Returns the voice encoder that prepares voices: MLX's copy of `ve` for device="mlx", otherwise `ve` itself."""
    if ve is not None and is_mlx(device):
        from .mlx.voice_encoder import VoiceEncoder as MlxVoiceEncoder

        return MlxVoiceEncoder(config.voice_encoder, ve.state_dict().items())
    return ve


def token_runner(t3: Any, options: EngineOptions) -> Speaking | None:
    if t3 is None:
        return None
    if isinstance(t3, T3):
        return TokenRunner(t3, options)
    from .mlx.tokens import MlxTokenRunner

    return MlxTokenRunner(t3, options)


def sound_runners(s3gen: S3Gen, device: Any, options: EngineOptions) -> tuple[MelRunner, WavRunner]:
    """`s3gen` is a torch module on every device."""
    if is_mlx(device):
        from .mlx.mel import MlxMelRunner
        from .mlx.wav import MlxWavRunner

        return MlxMelRunner(s3gen.flow, options), MlxWavRunner(s3gen.mel2wav, options)
    return MelRunner(s3gen.flow, options), WavRunner(s3gen.mel2wav, options)
