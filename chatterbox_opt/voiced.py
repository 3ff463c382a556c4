"""The voices a model speaks in: its own, those that were prepared, and those of recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .checks import NEUTRAL, check_exaggeration, is_recording
from .config import ModelConfig
from .voice import Conditionals, VoicePreparer, with_exaggeration


class Voiced:
    """What of a model has to do with voices."""

    config: ModelConfig
    voices: VoicePreparer
    conds: Conditionals | None  # the model's own voice

    def prepare_voice(
        self, audio: Any, exaggeration: float | None = None, *, sample_rate: int | None = None, **how: Any
    ) -> Conditionals:
        """A voice from a recording (a path, or samples with their rate) or from a saved voice. Cached by content. It
        speaks with its `exaggeration` (0.5 where none is given, a saved voice with its own) unless a call gives one."""
        exaggeration = check_exaggeration(exaggeration)
        return self.voices.prepare(audio, exaggeration=exaggeration, sample_rate=sample_rate, **how)

    def prepare_conditionals(self, wav_fpath: Any, exaggeration: float = 0.5) -> None:
        """The model's own voice. As upstream has it, calls speak in it with their own exaggeration, 0.5 by default."""
        self.conds = self.prepare_voice(wav_fpath, exaggeration)

    def _voice_or_recording(self, voice: Any, audio_prompt_path: Any, exaggeration: float | None, **how: Any) -> Any:
        """The voice that was given, or that of the recording, which becomes the model's own, as upstream has it."""
        if voice is not None or not is_recording(audio_prompt_path):
            return voice
        voice = self.conds = self.prepare_voice(audio_prompt_path, exaggeration, **how)
        return voice  # not read back: another thread may have set it since

    def _voice(self, voice: Any, exaggeration: float | None = None) -> Conditionals:
        """The voice to speak in: the one given, or the path of one, each with its own exaggeration unless the call says
        it; or the model's own, with 0.5 then."""
        if isinstance(voice, (str, Path)):
            voice = self.prepare_voice(voice)
        if voice is None:
            voice, exaggeration = self.conds, NEUTRAL if exaggeration is None else exaggeration
        if voice is None:
            raise MissingVoice(
                "Please `prepare_conditionals` first or specify `audio_prompt_path`: this model has no built-in voice"
            )
        if not (hasattr(voice, "t3") and hasattr(voice, "gen")):
            raise ValueError(f"voice is {type(voice).__name__}: a path, or what prepare_voice() makes, is needed")
        if isinstance(voice, Conditionals):
            voice.check(self.config)
        return voice if self.config.t3.is_gpt else with_exaggeration(voice, exaggeration)


class MissingVoice(AssertionError, ValueError):
    """Upstream raises an AssertionError here; new code may catch the ValueError it should have been."""
