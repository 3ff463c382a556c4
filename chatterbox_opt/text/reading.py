"""Optional changes to a piece of text before a model reads it: respellings, then words for numbers and signs. They do
not affect the caller's text, nor where it is cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from .libraries import choose, reader
from .pronounce import Pronunciations, recording_name
from .split import SHORTEST_LIMIT, split_text, width
from .spoken import as_spoken

Read = Callable[[str], str]


@dataclass(frozen=True)
class Reading:
    language: str | None  # None: the model has no language argument
    spoken: bool | str = False  # True, or a library's name
    pronounce: Pronunciations | None = None
    recording: str | None = None  # whose pronunciations are used, unless these are a voice's already
    recordings: Mapping[str, str | None] = field(default_factory=dict)  # the same for the names of [voice NAME]

    @classmethod
    def of(
        cls, language: str | None, spoken: bool | str | None = False, pronounce: Any = None, voice: Any = None,
        named: Any = None,
    ) -> Reading | None:
        """Returns None if nothing is asked for. Raises if a library for it is missing or cannot be loaded. `voice` and
        the values of `named`, the call's markup=, are voices as the caller gave them."""
        if pronounce is None and (spoken is False or spoken is None):
            return None
        recordings = {name: recording_name(of) for name, of in named.items()} if isinstance(named, Mapping) else {}
        respellings = None if pronounce is None else Pronunciations.of(pronounce)
        made = cls(language, spoken or False, respellings, recording_name(voice), recordings)
        made.steps()
        return made

    def steps(self, language: str | None = None, voice: str | None = None) -> Read:
        """Returns the function for a part of the text in that language and voice; None: the call's own."""
        language = language or self.language
        steps: list[Callable[[str], str]] = []
        if self.pronounce is not None:
            # those of a role's name and its recording would be left for those of the recording
            own = None if self.pronounce.chosen else self.recording
            steps.append(
                self.pronounce.for_voice(own) if voice is None
                else self.pronounce.every.for_voice(voice, self.recordings.get(voice))
            )
        if self.spoken is not False:
            if language is None:
                raise ValueError(f"spoken={self.spoken!r} needs to know the language: give a language_id")
            read = reader(language, choose(language, self.spoken))
            steps.append(lambda text: as_spoken(text, read))
        return lambda text: reduce(lambda said, step: step(said), steps, text)


def pieces(text: str, max_chars: int | None, read: Read | None) -> list[tuple[str, str]]:
    """Returns (piece of the text, the same as it is read) for each piece. Neither is longer than `max_chars`, except
    for a piece too short to be cut again."""
    whole = [text] if max_chars is None else split_text(text, max_chars)
    if read is None:
        return [(piece, piece) for piece in whole]
    return [pair for piece in whole for pair in _fitting(piece, max_chars, read)]


def _fitting(piece: str, max_chars: int | None, read: Read) -> list[tuple[str, str]]:
    said = read(piece)
    if max_chars is None or width(said) <= max_chars or width(piece) <= SHORTEST_LIMIT:
        return [(piece, said)]
    smaller = min(width(piece) * max_chars // width(said), width(piece) - 1)
    parts = split_text(piece, max(SHORTEST_LIMIT, smaller))
    return [pair for part in parts for pair in _fitting(part, max_chars, read)]
