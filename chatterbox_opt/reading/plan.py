"""Plans a script: per paragraph, the arguments it is spoken with and the key it is stored under."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..audio.io import fingerprint
from ..takes import Takes
from ..text.markup import unescaped
from ..text.pronounce import Pronunciations, recording_name
from .cast import NARRATOR, Role
from .script import Chapter, Paragraph
from .store import key_of

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # within the repr() of an object; another in every process

SPEAKING = ("max_chars", "n_cfm_timesteps", "takes", "retries")  # options of speak(), not of jobs()


@dataclass(frozen=True)
class Line:
    """A paragraph and the arguments it is spoken with."""

    paragraph: Paragraph
    how: Mapping[str, Any]  # for model.jobs()
    speaking: Mapping[str, Any]  # for model.speak()
    key: str


class Planner:
    """Derives the key and the seed of each line from all that its sound depends on: text, voice, options, weights."""

    def __init__(
        self, model: Any, cast: Mapping[str, Role], markup: bool, how: Mapping[str, Any], score: Any, seed: int
    ) -> None:
        """`how` are arguments of model.jobs() and speak() for all lines; a role's own options override them."""
        self.cast, self.markup, self.how, self.score, self.seed = {NARRATOR: Role(), **cast}, markup, how, score, seed
        self.own = _voice(model.conds)
        self.voices = {name: role.voice for name, role in cast.items()}  # None: the model's own
        self.heard = {name: self.own if voice is None else _voice(voice) for name, voice in self.voices.items()}
        every = _pronunciations(how.get("pronounce"))
        self.respelt = {name: _for_role(name, role, every) for name, role in self.cast.items()}
        self.model = {"weights": weights(model), "engine": repr(model.options), "version": __version__,
                      "family": model.config.family, "marked": model.watermarker is not None}

    def chapters(self, chapters: Sequence[Chapter]) -> list[list[Line]]:
        seen: Counter[str] = Counter()
        return [list(self._lines(chapter.paragraphs, seen)) for chapter in chapters]

    def _lines(self, paragraphs: Sequence[Paragraph], seen: Counter[str]) -> Iterator[Line]:
        for p in paragraphs:
            name = p.speaker if p.speaker is not None and p.speaker in self.cast else NARRATOR
            role = self.cast[name]
            how = {**self.how, **role.options}
            how.pop("pronounce", None)  # set below; only the entries that concern the line count for its key
            if not how.get("spoken"):
                how.pop("spoken", None)
            speaking = self._speaking({option: how.pop(option) for option in SPEAKING if option in how})
            if role.language or "language_ids" in how:
                how["language_ids"] = role.language or how["language_ids"]
            marked = self.markup and "[" in p.text
            content = {
                "text": p.text, "how": _described(how), "markup": self.markup,
                "respelt": self._respelt(p, name, marked),
                "voice": self.heard.get(name, self.own), "model": self.model, "speaking": _described(speaking),
                "seeds": [self.seed, role.seed], "named": self.heard if marked else {},
            }
            plain = key_of(content)
            seen[plain] += 1  # a repeated line gets another seed
            key = key_of([plain, seen[plain]])
            how |= {"voices": role.voice, "seeds": int(key[:15], 16), "markup": self.voices if self.markup else False}
            how["pronounce"] = self.respelt[name]
            yield Line(p, how, speaking, key)

    def _speaking(self, options: dict[str, Any]) -> dict[str, Any]:
        """Returns arguments of speak(), without takes and score if there is a single take."""
        takes = Takes(options.pop("takes", 1), self.score, options.pop("retries", 0))
        if takes.count == 1 and not takes.retries:
            return options
        return options | {"takes": takes.count, "retries": takes.retries, "score": takes.score}

    def _respelt(self, paragraph: Paragraph, name: str, marked: bool) -> list[Any]:
        """Returns the respellings that can change this paragraph, so that a new word only changes the keys of
        paragraphs that have it."""
        found = self.respelt[name]
        if found is None:
            return []
        text = f"{paragraph.text}\n{unescaped(paragraph.text)}" if marked else paragraph.text
        named = self.voices.items() if marked else ()
        others = [found.every.for_voice(each, recording_name(voice)) for each, voice in named]
        concerned = [each.concerning(text) for each in (found, *others)]
        return concerned if any(map(any, concerned)) else []


def chooses(options: Mapping[str, Any], cast: Mapping[str, Role]) -> bool:
    """Whether any role has several takes, or retries."""
    every = [options, *(role.options for role in cast.values())]
    return any(one.get("takes", 1) != 1 or one.get("retries") for one in every)


def _pronunciations(respellings: Any) -> Pronunciations | None:
    return None if respellings is None else Pronunciations.of(respellings)


def _for_role(name: str, role: Role, every: Pronunciations | None) -> Pronunciations | None:
    """Returns the role's own respellings, or the general ones with their tables for its name and its recording's name.
    """
    found = _pronunciations(role.options["pronounce"]) if "pronounce" in role.options else every
    if found is None:
        return None
    return found.for_voice(name, recording_name(role.voice))


def _described(options: Mapping[str, Any]) -> dict[str, str]:
    """Returns texts that are equal in every process. A function is described by its name only, an object without a
    repr() of its own by its type's name, and a partial by its function and arguments."""
    return {option: _description(value) for option, value in options.items()}


def _description(value: Any) -> str:
    if isinstance(value, partial):
        named = [f"{name}={_description(each)}" for name, each in sorted(value.keywords.items())]
        return f"partial({', '.join([_description(value.func), *map(_description, value.args), *named])})"
    if name := getattr(value, "__qualname__", None):
        return name
    if type(value).__repr__ is object.__repr__:
        return type(value).__qualname__
    return _ADDRESS.sub("", repr(value))


def weights(model: Any) -> str:
    """Returns a hash that is equal for equal checkpoints, of a sample of each tensor."""
    digest = hashlib.blake2b(digest_size=16)
    for network in (model.t3.network, model.s3gen.network):
        is_torch = isinstance(network, torch.nn.Module)
        for name, tensor in network.state_dict().items() if is_torch else network.named_tensors():
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
