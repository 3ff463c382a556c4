"""What has to be said for a script, piece by piece, each with the name under which it is kept."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..audio.io import fingerprint
from .cast import NARRATOR, Role
from .script import Chapter, Paragraph
from .store import key_of


@dataclass(frozen=True)
class Line:
    """A paragraph, and how it is said."""

    paragraph: Paragraph
    how: Mapping[str, Any]  # for model.jobs()
    key: str


class Planner:
    """The key of a line is made of all that its sound depends on: text, voice, options, weights. So is its seed."""

    def __init__(
        self, model: Any, cast: Mapping[str, Role], markup: bool, how: Mapping[str, Any], speaking: Mapping[str, Any],
        seed: int,
    ) -> None:
        """`how` are arguments of model.jobs() for all lines, where a role's own come first; `speaking` speak()'s."""
        self.cast, self.markup, self.how, self.seed = cast, markup, how, seed
        self.voices = {name: role.voice for name, role in cast.items() if role.voice is not None}
        self.heard = {name: _voice(voice) for name, voice in self.voices.items()}
        self.model = {"weights": weights(model), "engine": repr(model.options), "version": __version__,
                      "family": model.config.family, "marked": model.watermarker is not None}
        self.speaking = {name: repr(value) for name, value in speaking.items()}
        self.own = _voice(model.conds)

    def chapters(self, chapters: Sequence[Chapter]) -> list[list[Line]]:
        seen: Counter[str] = Counter()
        return [list(self._lines(chapter.paragraphs, seen)) for chapter in chapters]

    def _lines(self, paragraphs: Sequence[Paragraph], seen: Counter[str]) -> Iterator[Line]:
        for p in paragraphs:
            name = p.speaker if p.speaker is not None and p.speaker in self.cast else NARRATOR
            role = self.cast.get(name, Role())
            how = {**self.how, **role.options}
            if role.language or "language_ids" in how:
                how["language_ids"] = role.language or how["language_ids"]
            marked = self.markup and "[" in p.text
            content = {
                "text": p.text, "how": {option: repr(value) for option, value in how.items()}, "markup": self.markup,
                "voice": self.heard.get(name, self.own), "model": self.model,
                "seeds": [self.seed, role.seed], "named": self.heard if marked else {}, "speaking": self.speaking,
            }
            plain = key_of(content)
            seen[plain] += 1  # the same words again are said anew
            key = key_of([plain, seen[plain]])
            how |= {"voices": role.voice, "seeds": int(key[:15], 16), "markup": self.voices if self.markup else False}
            yield Line(p, how, key)


def weights(model: Any) -> str:
    """Equal for equal checkpoints: some numbers of every tensor."""
    digest = hashlib.blake2b(digest_size=16)
    for network in (model.t3, model.s3gen):
        for name, tensor in network.state_dict().items():
            digest.update(name.encode())
            if torch.is_tensor(tensor):
                digest.update(str(tuple(tensor.shape)).encode())
                digest.update(_some(tensor))
    return digest.hexdigest()


def _some(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().flatten()
    return _bytes(flat[:: max(1, len(flat) // 32)][:64])


def _bytes(tensor: torch.Tensor) -> bytes:
    tensor = tensor.dequantize() if tensor.is_quantized else tensor
    return tensor.detach().cpu().double().numpy().tobytes()


def _voice(voice: Any) -> str:
    if isinstance(voice, (str, Path)):
        return fingerprint(voice)
    digest = hashlib.blake2b(digest_size=16)
    for part in (vars(voice.t3), voice.gen) if voice is not None else ():
        for name in sorted(part):
            value = part[name]
            digest.update(name.encode())
            digest.update(_bytes(value) if torch.is_tensor(value) else repr(value).encode())
    return digest.hexdigest()
