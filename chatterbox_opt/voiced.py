"""A model's voices: its own, prepared ones, and those of recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .checks import NEUTRAL, check_exaggeration, is_recording
from .config import ModelConfig
from .device_lock import device_lock
from .voice import Conditionals, with_exaggeration
from .voice_preparer import VoicePreparer


class Voiced:
    """Mixin of the text-to-speech classes: prepares voices, and chooses the one that a call speaks in."""

    config: ModelConfig
    voices: VoicePreparer
    conds: Conditionals | None  # the model's own voice

    def prepare_voice(
        self, audio: Any, exaggeration: float | None = None, *, sample_rate: int | None = None,
        norm_loudness: bool | None = None,
    ) -> Conditionals:
        """Returns the voice of a recording (a path, an open file, or samples with their rate) or of a saved voice.
        Cached by content. The voice keeps its `exaggeration` (by default 0.5, or the saved one) unless a call gives
        another. `norm_loudness` concerns Turbo and Nano only: False leaves the recording's level as it is."""
        return self.voices.prepare(
            audio, exaggeration=check_exaggeration(exaggeration), sample_rate=sample_rate, norm_loudness=norm_loudness
        )

    def prepare_conditionals(self, wav_fpath: Any, exaggeration: float = 0.5) -> None:
        """Sets the model's own voice. As upstream, calls use it with their own exaggeration, 0.5 by default."""
        self.conds = self.prepare_voice(wav_fpath, exaggeration)

    def _voice_or_recording(
        self, voice: Any, audio_prompt_path: Any, exaggeration: float | None, norm_loudness: bool = True
    ) -> Any:
        """Returns `voice`, or that of the recording, which also becomes the model's own, as in upstream."""
        if voice is not None and is_recording(audio_prompt_path):
            raise ValueError("voice and audio_prompt_path are both given: one of them is heard; leave out the other")
        if isinstance(voice, (str, Path)) and not norm_loudness:  # else _voice() prepares it
            return self.prepare_voice(voice, norm_loudness=False)
        if not is_recording(audio_prompt_path):
            return voice
        voice = self.conds = self.prepare_voice(audio_prompt_path, exaggeration, norm_loudness=norm_loudness)
        return voice  # and not self.conds, which another thread may have set since

    def _voice(self, voice: Any, exaggeration: float | None = None) -> Conditionals:
        """Returns the voice to speak in. `voice` may be a voice or a path, with its own exaggeration unless the call
        gives one; None is the model's own voice, with the call's exaggeration or 0.5."""
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
        if self.config.t3.is_gpt:
            return voice
        with device_lock(self.voices.device):
            return with_exaggeration(voice, exaggeration)


class MissingVoice(AssertionError, ValueError):
    """Upstream raises an AssertionError here; new code may catch the ValueError it should have been."""
