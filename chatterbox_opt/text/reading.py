"""What is done to a piece of a text before a model reads it, where a caller asks for it: respellings, then words for
numbers and signs. The text itself stays as it is, and is cut where it would be cut anyway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .libraries import choose, reader
from .pronounce import Pronunciations
from .split import SHORTEST_LIMIT, split, width
from .spoken import as_spoken

Reading = Callable[[str], str]


def reading(
    language: str | None, spoken: bool | str = False, pronounce: Any = None, voice: str | None = None
) -> Reading | None:
    """None where nothing is asked for. `spoken` is True or a library's name; `voice` chooses among pronunciations."""
    steps: list[Reading] = []
    if pronounce is not None:
        steps.append(Pronunciations.of(pronounce).for_voice(voice))
    if spoken is not False and spoken is not None:
        if language is None:
            raise ValueError(f"spoken={spoken!r} needs to know the language: give a language_id")
        read = reader(language, choose(language, spoken))
        steps.append(lambda text: as_spoken(text, read))
    if not steps:
        return None

    def apply(text: str) -> str:
        for step in steps:
            text = step(text)
        return text

    return apply


def pieces(text: str, max_chars: int | None, read: Reading | None) -> list[tuple[str, str]]:
    """(a piece of the text, the same as it is read). Neither is longer than `max_chars`, but for a rest too short to be
    cut."""
    whole = [text] if max_chars is None else split(text, max_chars)
    if read is None:
        return [(piece, piece) for piece in whole]
    return [pair for piece in whole for pair in _fitting(piece, max_chars, read)]


def _fitting(piece: str, max_chars: int | None, read: Reading) -> list[tuple[str, str]]:
    said = read(piece)
    if max_chars is None or width(said) <= max_chars or width(piece) <= SHORTEST_LIMIT:
        return [(piece, said)]
    smaller = min(width(piece) * max_chars // width(said), width(piece) - 1)
    return [pair for part in split(piece, max(SHORTEST_LIMIT, smaller)) for pair in _fitting(part, max_chars, read)]
