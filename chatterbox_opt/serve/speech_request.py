"""The body of a request for speech: OpenAI's fields, and what Chatterbox takes beyond them."""

from __future__ import annotations

import functools
import logging
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from . import catalogue, encoders
from .errors import ApiError

logger = logging.getLogger(__name__)
Number = Annotated[float, Field(allow_inf_nan=False)]
Format = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]


@functools.cache
def warn_of_instructions() -> None:
    """Once in a process: clients send them from a field of their settings, with every request."""
    logger.warning(
        "A client sends instructions: Chatterbox follows none, and they are ignored here; exaggeration, cfg_weight and "
        "temperature shape its speech, as far as the model takes them"
    )


class VoiceId(BaseModel):
    model_config = ConfigDict(extra="forbid")
    id: str


class Manner(BaseModel):
    """How to speak, whatever the text is and however it comes."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    voice: str | VoiceId | None = Field(None, description="A name or id; the model's own voice if left out")
    response_format: Format = "mp3"
    speed: float = Field(1.0, ge=0.25, le=4.0, allow_inf_nan=False, description="The pitch stays as it is")
    instructions: str | None = Field(None, max_length=4096, description="Ignored: Chatterbox follows no instructions")
    language: str | None = Field(None, description="Such as fr; for the multilingual model")
    seed: int | None = Field(None, description="The same text, voice and seed give the same audio")
    exaggeration: Number | None = None
    cfg_weight: Number | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    min_p: Number | None = None
    top_k: int | None = None
    repetition_penalty: Number | None = None
    max_new_tokens: int | None = Field(None, description="Speech tokens of a piece of the text, 25 a second")
    n_cfm_timesteps: int | None = Field(None, description="Steps of the decoder; fewer are faster")
    max_chars: int | None = Field(280, description="Longer texts are spoken in pieces of so many characters")
    spoken: bool = Field(False, description="Numbers, dates, money and units in words")
    markup: bool = Field(False, description="Heed [pause 0.8s], [lang fr], headings and paragraphs")
    first_chunk: Number = Field(1.0, description="Seconds of sound to be had before anything is sent")

    def arguments(self, model: Any, own: str) -> dict[str, Any]:
        """For the engine's submit(), but the voice; raises where this model or server cannot do what is asked."""
        catalogue.check_model(self.model, own)
        if self.instructions and self.instructions.strip():
            warn_of_instructions()
        if what := encoders.missing(self.response_format):
            raise ApiError(400, what, param="response_format", code="unsupported_format")
        return {
            "language_id": catalogue.language_of(model, self.language),
            "first_chunk": None if self.whole() else self.first_chunk,
            **{name: getattr(self, name) for name in ("seed", "n_cfm_timesteps", "max_chars", "spoken", "markup")},
            **self._sampling(model),
        }

    def whole(self) -> bool:
        """Whether it is made to its end before anything is sent."""
        return False

    def _sampling(self, model: Any) -> dict[str, Any]:
        names = [*catalogue.SAMPLING, "max_new_tokens"]
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        for name in given:
            if name in catalogue.SAMPLING and name not in catalogue.takes(model):
                message = f"{name}: this model does not take it; it takes {', '.join(catalogue.takes(model))}"
                raise ApiError(400, message, param=name, code="unsupported_parameter")
        return given

    def voice_name(self) -> str | None:
        return self.voice.id if isinstance(self.voice, VoiceId) else self.voice


class SpeechRequest(Manner):
    input: str = Field(description="The text, of any length up to the server's limit")
    stream_format: Literal["audio", "sse"] = "audio"
    stream: bool = Field(True, description="False: made as a whole and then sent, with its length")

    def whole(self) -> bool:
        return not self.stream
