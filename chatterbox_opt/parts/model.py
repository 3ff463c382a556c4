"""The parts as attributes of a model. Assigning to one replaces its network."""

from __future__ import annotations

from typing import Any

from ..pipeline import Pipeline
from .s3gen import S3GenPart
from .t3 import T3Part
from .voice_encoder import VoiceEncoderPart


class WithDecoder:
    """Mixin of all models."""

    pipeline: Pipeline
    _s3gen: S3GenPart

    @property
    def s3gen(self) -> S3GenPart:
        return self._s3gen

    @s3gen.setter
    def s3gen(self, network: Any) -> None:
        self._s3gen = self._s3gen.replaced_by(network)


class WithParts(WithDecoder):
    """Mixin of the text-to-speech classes."""

    _t3: T3Part
    _ve: VoiceEncoderPart

    @property
    def t3(self) -> T3Part:
        return self._t3

    @t3.setter
    def t3(self, network: Any) -> None:
        self._t3 = self._t3.replaced_by(network)

    @property
    def ve(self) -> VoiceEncoderPart:
        return self._ve

    @ve.setter
    def ve(self, network: Any) -> None:
        self._ve = self._ve.replaced_by(network)

    @property
    def tokenizer(self) -> Any:
        """What turns a text into ids: ours, or any with the methods of chatterbox-tts's."""
        return self.pipeline.tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self.pipeline.tokenizer = tokenizer
