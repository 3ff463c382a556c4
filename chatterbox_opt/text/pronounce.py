"""Respellings: words and regular expressions that are replaced in a text before a model reads it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from unicodedata import category

from ..files import tables_of, text_of
from .split import WIDE_CHAR

_APOSTROPHE = "['’]"
_INNER_BLANKS = re.compile(r"(?<=\S)\s+(?=\S)")
TABLES = ("words", "patterns", "voice")


class Pronunciations:
    """Words and patterns for every voice, and further ones for single voices. A word matches whole words only: "cat"
    in "cat's", but not in "concatenate". One in lower case matches any case, and its respelling is capitalised like the
    match; one with a capital matches only itself. Either apostrophe matches both, and a blank any run of blanks. Words
    come first, the longest at each place, and respellings are not searched for words again; then the patterns, one
    after another."""

    def __init__(
        self,
        words: Mapping[str, str] | None = None,
        patterns: Mapping[str | re.Pattern, str] | None = None,
        voices: Mapping[str, Pronunciations] | None = None,
    ) -> None:
        """`patterns` and their respellings are Python's: r"v(\\d+)": r"version \\1". `voices` precede the others."""
        self.words = _checked(words or {}, "words")
        self.patterns = [(_compiled(p), _template(p, to)) for p, to in _checked(patterns or {}, "patterns").items()]
        self.voices = dict(voices or {})
        self._order = sorted(self.words, key=lambda word: (_only_marks(word), -len(word)))  # of the alternatives
        self._search = _alternatives(self._order)
        self._all = self  # for_voice() sets it
        self._joined: dict[tuple[str, ...], Pronunciations] = {}

    @classmethod
    def of(cls, source: Any) -> Pronunciations:
        """Makes one of a Pronunciations, the path of a file, or a mapping: compiled keys are patterns, others words."""
        if isinstance(source, Pronunciations):
            return source
        if isinstance(source, (str, os.PathLike)):
            return cls.load(source)
        if not isinstance(source, Mapping):
            kind = type(source).__name__
            raise ValueError(f"pronounce is {kind}: a dict, or the path of a .toml or .json file, is needed")
        patterns: dict[Any, str] = {key: to for key, to in source.items() if isinstance(key, re.Pattern)}
        return cls({key: to for key, to in source.items() if key not in patterns}, patterns)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Pronunciations:
        """Reads a TOML or JSON file with the tables words, patterns and voice.NAME, which has words and patterns too.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file of pronunciations")
        data = _parsed(path)
        try:
            return cls._of_tables(data)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def _of_tables(cls, data: Any, voices: bool = True) -> Pronunciations:
        allowed = TABLES if voices else TABLES[:2]
        tables = data if isinstance(data, Mapping) else {}
        if not tables or set(tables) - set(allowed) or not all(isinstance(t, Mapping) for t in tables.values()):
            found = ", ".join(map(str, tables)) or "nothing"
            raise ValueError(f"the tables {', '.join(allowed)} are known; found: {found}")
        own = {name: cls._of_tables(table, voices=False) for name, table in tables.get("voice", {}).items()}
        return cls(tables.get("words"), tables.get("patterns"), own)

    @property
    def chosen(self) -> bool:
        """Whether this is the result of for_voice()."""
        return self._all is not self

    @property
    def every(self) -> Pronunciations:
        """The object with every voice's tables, of which for_voice() made this one; otherwise this one."""
        return self._all

    def for_voice(self, *names: str | None) -> Pronunciations:
        """Returns the respellings for a voice with these names: the words and patterns of the first name precede those
        of the second, and all of them the general ones. Those of an earlier for_voice() stay only if no name is known.
        """
        every = self._all
        known = tuple(name for name in dict.fromkeys(names) if name and name in every.voices)
        if not known:
            return self
        if known not in every._joined:
            joined = every
            for name in reversed(known):
                joined = joined._below(every.voices[name])
            joined._all = every
            every._joined[known] = joined
        return every._joined[known]

    def _below(self, own: Pronunciations) -> Pronunciations:
        """Returns `own` and, where it has nothing, these."""
        general = {word: to for word, to in self.words.items() if not own._has(word)}
        joined = Pronunciations({**general, **own.words})
        joined.patterns = [*own.patterns, *self.patterns]
        return joined

    def concerning(self, text: str) -> list[Any]:
        """Returns, in JSON's types, the entries that can change the text or a part of it: equal ones change it equally.
        """
        words = {word: self.words[word] for word, found in self._anywhere.items() if found.search(text)}
        return [words, [[pattern.pattern, pattern.flags, to] for pattern, to in self.patterns]]

    @cached_property
    def _anywhere(self) -> dict[str, re.Pattern]:
        """A pattern per word that finds it within other words too: a piece of a text may begin or end there."""
        return {word: re.compile(_alternative(word)) for word in self.words}

    def __call__(self, text: str) -> str:
        if self._search is not None:
            text = self._search.sub(self._respelt, text)
        for pattern, to in self.patterns:
            text = pattern.sub(to, text)
        return text

    def _respelt(self, match: re.Match) -> str:
        found = match[0]
        if found in self.words:
            return self.words[found]
        group = match.lastindex or 1  # and not found.lower(): "(?i)" equates İ and i too
        word = self._order[group - 1]
        to = self.words[word]
        return to[:1].upper() + to[1:] if _any_case(word) and found[:1].isupper() else to

    def _has(self, word: str) -> bool:
        """Whether an entry matches all of the word."""
        return self._search is not None and self._search.fullmatch(word) is not None


def recording_name(voice: Any) -> str | None:
    """Returns the name by which a recording has tables of its own; None if the voice is no file."""
    return Path(voice).stem if isinstance(voice, (str, os.PathLike)) else None


def _parsed(path: Path) -> Any:
    if path.suffix.lower() == ".toml":
        return tables_of(path)
    if path.suffix.lower() != ".json":
        raise ValueError(f"{path}: pronunciations are read from .toml and .json")
    text = text_of(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: {error}") from error


def _checked(table: Mapping[Any, Any], name: str) -> dict[Any, str]:
    for key, to in table.items():
        text = key.pattern if isinstance(key, re.Pattern) else key
        if not isinstance(text, str) or not text.strip() or not isinstance(to, str):
            raise ValueError(f"{name}: {key!r} = {to!r}: text is needed on both sides")
    return dict(table)


def _compiled(pattern: str | re.Pattern) -> re.Pattern:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"patterns: {pattern!r} is no regular expression: {error}") from error


def _template(pattern: str | re.Pattern, to: str) -> str:
    try:
        _compiled(pattern).sub(to, "")
    except (re.error, IndexError) as error:
        raise ValueError(f"patterns: {to!r} does not fit {pattern!r}: {error}") from error
    return to


def _any_case(word: str) -> bool:
    return word == word.lower()


def _alternatives(order: Sequence[str]) -> re.Pattern | None:
    """Returns one pattern with a group for each word, in this order; words of combining marks only come last. The
    bounds are large: written for each of 1,000 words, and not once for all, they would take seconds to compile."""
    whole = [f"({_alternative(word)})" for word in order if not _only_marks(word)]
    marks = [f"({_alternative(word)})" for word in order if _only_marks(word)]  # found within words too: no bounds
    parts = [*([f"{_bound()}(?:{'|'.join(whole)}){_bound()}"] if whole else []), *marks]
    return re.compile("|".join(parts)) if parts else None


def _alternative(word: str) -> str:
    """Returns a pattern for a word; one in lower case matches any case."""
    blanks = r"\s+".join(map(re.escape, _INNER_BLANKS.split(word)))
    return f"(?{'i' if _any_case(word) else ''}:{re.sub(_APOSTROPHE, _APOSTROPHE, blanks)})"


def _only_marks(word: str) -> bool:
    return all(category(char)[0] == "M" for char in word)


@cache
def _bound() -> str:
    """Returns a pattern for every place but those between two letters: where a word begins or ends with a letter, the
    text around it must not go on with one."""
    letter = rf"(?!{WIDE_CHAR.pattern})[\w{_combining()}]"  # or digit, of a script with blanks between words
    return f"(?:(?<!{letter})|(?!{letter}))"


def _combining() -> str:
    """Returns the characters that change the letter before them, for a set. Variation selectors change only its look,
    and stand behind emoji too."""
    marks = (char for char in map(chr, range(0x300, 0x20000)) if category(char)[0] == "M")  # all but selectors
    return "".join(char for char in marks if not "\ufe00" <= char <= "\ufe0f")
