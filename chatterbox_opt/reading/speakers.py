"""Who speaks a line of a script, and which lines are headings instead."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping
from typing import NamedTuple

# "Anna: ", "1st Guard: ", "Anna (V.O.) (angry): ", "安娜："; _is_name() judges what stands there as a name
_NAME = re.compile(r"\s*([^\s:：()（）][^:：()（）]{0,79}?)\s*(?:[(（][^()（）]*[)）]\s*)*(?::(?:\s+|$)|：\s*)")
LONGEST_NAME = 40
_WITHIN_NAMES = " .'’-_\u200c\u200d"  # besides letters, digits and their marks; the last two shape Persian and Hindi
_UNITS = "one|two|three|four|five|six|seven|eight|nine"
_TENS = "twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
_ORDINALS = "first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth|last"
_WORDS = (
    rf"(?:(?:{_TENS})(?:[ -](?:{_UNITS}))?|{_UNITS}|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|"
    rf"eighteen|nineteen|hundred|{_ORDINALS})\b"
)
_ROMAN = r"(?=[ivxlcdm])m{0,3}(?:c[md]|d?c{0,3})(?:x[cl]|l?x{0,3})(?:i[xv]|v?i{0,3})\b"
# "Chapter 3 The boat", "Act IV", "Part One of all"; "part two: ..." and "Part I The End" too, but not "Book two seats."
# or "Book a table.": those need an end, a mark or a capital after the number.
_NUMBERED = re.compile(
    r"\s*(?i:chapter|part|book|act|scene)(?:[.]?|"
    rf"\s+(?:\d+\w{{0,2}}\b|(?=[IVXLCDM]{{2,}}\b)(?i:{_ROMAN})|(?=[A-Z])(?i:{_WORDS})|"
    rf"(?i:{_ROMAN}|[^\W\d_]\b|(?:the\s+)?{_WORDS})(?=\s*(?:[^\w\s'’]|$)|\s+[A-Z])).{{0,70}})\s*"
)
_NAMED = re.compile(r"\s*(?:prologue|epilogue|preface|introduction)\b.{0,70}", re.I)


def check_names(names: Collection[str]) -> None:
    """Raises ValueError for names that no line of a script can begin with: they would be read aloud."""
    wrong = []
    for name in names:
        found = _named(f"{name}: ")
        if found is None or found[0] != composed(name):
            wrong.append(repr(name))
    if wrong:
        raise ValueError(
            f"no line can begin with the name {', '.join(wrong)}: a name has up to {LONGEST_NAME} letters, digits, "
            "blanks, hyphens, apostrophes and full stops, and at least one letter"
        )


def _named(line: str) -> tuple[str, str] | None:
    """Returns the composed name that the line begins with, and what follows it."""
    found = _NAME.match(line)
    name = composed(found[1]) if found else ""
    return (name, line[found.end() :]) if found and _is_name(name) else None


def composed(name: str) -> str:
    """Returns one spelling of a name: "é" is one letter, or a letter and a mark."""
    return unicodedata.normalize("NFC", name)


def _is_name(name: str) -> bool:
    """A time such as "12" has no letter, and is none."""
    return (
        len(name) <= LONGEST_NAME and name[:1].isalnum() and any(map(str.isalpha, name))
        and all(c.isalnum() or c in _WITHIN_NAMES or unicodedata.category(c)[0] == "M" for c in name)
    )


class Speakers(NamedTuple):
    """Who may speak: in a dialogue everybody, or the cast if there is one; elsewhere the cast."""

    dialogue: bool
    cast: Mapping[str, str]  # composed names to those given

    def of(self, line: str, number: int, last: bool) -> tuple[str, str] | None:
        """Returns who speaks the line, and what follows the name; None if the line has no name. In the last line of a
        block, a name that nothing follows is text."""
        name, said = _named(line) or ("", "")
        if not (name in self.cast or (self.dialogue and name)) or (last and not said):
            return None
        if self.cast and name not in self.cast:
            known = ", ".join(sorted(self.cast.values()))
            raise ValueError(f"line {number}: nobody is called {name!r}; the cast has {known}")
        return self.cast.get(name, name), said

    def heads(self, line: str) -> bool:
        """Whether the line is a heading such as "Chapter 3". A role may be called Act or Prologue."""
        name = (_named(line) or ("",))[0]
        if name in self.cast:
            return False
        if _NUMBERED.fullmatch(line):
            return True
        return bool(_NAMED.fullmatch(line)) and not (name and self.dialogue and not self.cast)
