"""Chatterbox TTS with the same call and the same checkpoints, faster; pure PyTorch, optional Triton and MLX."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Loaded on first touch, so that `import chatterbox_opt` costs no torch.
_HOMES = {
    "OptimizedChatterboxTTS": "tts",
    "OptimizedChatterboxMultilingualTTS": "mtl_tts",
    "OptimizedChatterboxTurboTTS": "tts_turbo",
    "OptimizedChatterboxVC": "vc",
    "ChatterboxTTS": "tts",
    "ChatterboxMultilingualTTS": "mtl_tts",
    "ChatterboxTurboTTS": "tts_turbo",
    "ChatterboxVC": "vc",
    "SUPPORTED_LANGUAGES": "text.languages",
    "EngineOptions": "options",
    "SamplingOptions": "options",
    "Conditionals": "voice",
    "Cancelled": "pipeline",
    "NoSpeech": "pipeline",
    "WhisperAligner": "align",
    "read_aloud": "reading.book",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"chatterbox_opt has no {name}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(f"chatterbox_opt.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
