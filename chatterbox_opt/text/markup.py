"""Marks in a text: [pause 0.8s], [voice NAME], [lang fr], headings and paragraphs. docs/long_form.md describes them.

A text becomes segments. Their `chars` cover it without gaps; the spoken part of each is one span, its `body`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from .split import says_something

PARAGRAPH, AHEAD_OF_HEADING, BEHIND_HEADING = 0.6, 1.0, 0.8  # s of silence, instead of the usual pause between pieces
LONGEST = 60.0  # s of silence that can be asked for in one place

_BREAK = r"(?:\r\n|\n|\r(?!\n))"
_EVENT = re.compile(
    r"(?P<escape>\\[\[\]])"
    r"|(?P<tag>\[[^\[\]\r\n]*\])"
    r"|(?P<open>\[)"
    r"|(?P<heading>(?:(?<=[\r\n])|\A)[ \t]{0,3}\#{1,6}[ \t]+)"
    rf"|(?P<gap>{_BREAK}(?:[ \t]*{_BREAK})+)"
    rf"|(?P<line>{_BREAK})"
)
_PAUSE = re.compile(r"(\d{1,4}(?:\.\d{1,6})?|\.\d{1,6})[ \t]*(s|ms)")
_PAUSES = re.compile(rf"(?<!\\)\[[^\S\r\n]*pause[^\S\r\n]+{_PAUSE.pattern}[^\S\r\n]*\]", re.I)
_OWN, _LANGUAGE = (
    re.compile(rf"(?<!\\)\[[^\S\r\n]*(?:{names})(?![^\s\]])[^\[\]\r\n]*\]", re.I)
    for names in ("pause|voice|lang", "lang")
)
_ESCAPED = "a bracket that is no mark is written \\["
_NAMED = re.compile(r"(\S*)\s*(.*)", re.S)  # of a mark without blanks around it: time is linear in its length


@dataclass(frozen=True)
class Segment:
    chars: tuple[int, int]  # first, past the last; with marks and blanks
    body: tuple[int, int]  # the spoken part, with a letter or digit; empty if a text ends in a pause
    before: float | None = None  # seconds of silence before it; None: the usual pause between pieces
    voice: str | None = None  # None: the call's own
    language: str | None = None


def whole(text: str) -> tuple[Segment, ...]:
    """Returns a text without marks as one segment."""
    return (Segment((0, len(text)), (0, len(text))),)


def parse(
    text: str, passing: Collection[str] = (), voices: Collection[str] = (), languages: Collection[str] = ()
) -> tuple[Segment, ...]:
    """Returns the segments of a text. `passing` are marks for the model itself, such as "[chuckle]"; `voices` and
    `languages` are the names that marks may use. Raises ValueError for others."""
    segments = _merged(list(_Parser(text, passing, voices, languages).segments()), text)
    if not segments:
        raise ValueError("the text has marks and blanks only: there is nothing to say")
    return segments


def pauses(text: str) -> float:
    """Returns the seconds of all pauses that a text asks for. Quick: nothing else in it is looked at."""
    return sum(_length(found[1], found[2]) for found in _PAUSES.finditer(text))


def without_marks(text: str) -> str:
    """Returns a text without its marks, but those for the model itself. Quick, as pauses() is."""
    return _OWN.sub(" ", text)


def language_mark(text: str) -> str | None:
    """Returns the last [lang ...] of a text, which holds behind it too; None if there is none."""
    return (_LANGUAGE.findall(text) or [None])[-1]


def unescaped(text: str) -> str:
    return text.replace("\\[", "[").replace("\\]", "]")


def position(text: str, at: int) -> str:
    """Returns line and column, as an editor shows them."""
    lines = re.split(_BREAK, text[:at])
    return f"line {len(lines)}, column {len(lines[-1]) + 1}"


class _Parser:
    def __init__(
        self, text: str, passing: Collection[str], voices: Collection[str], languages: Collection[str]
    ) -> None:
        self.text, self.passing, self.voices, self.languages = text, passing, voices, languages
        self.heading = False

    def segments(self) -> Iterator[Segment]:
        """Yields one segment after every mark, many with an empty body. Silence between paragraphs is negative until
        _merged() knows whether a pause was asked for there."""
        now = Segment((0, 0), (0, 0))
        for event in _EVENT.finditer(self.text):
            following = self._after(now, event)
            if following is not None:
                yield self._closed(now, event.start())
                now = following
        yield self._closed(now, len(self.text))

    def _closed(self, segment: Segment, end: int) -> Segment:
        first = segment.body[0]
        said = self.text[first:end]
        first += len(said) - len(said.lstrip())
        return replace(segment, body=(first, max(first, first + len(said.strip()))))

    def _after(self, now: Segment, event: re.Match[str]) -> Segment | None:
        """Returns the segment that begins at the event; None if the event is part of the text."""
        kind, start, end = event.lastgroup, event.start(), event.end()
        following = replace(now, chars=(start, start), body=(end, end), before=None)
        if kind == "tag" and event.group() not in self.passing:
            return self._told(event.group()[1:-1], start, following)
        if kind == "open":
            raise self._wrong(start, f"this [ has no ] in its line; {_ESCAPED}")
        if kind == "heading":
            self.heading = True
            return replace(following, before=-AHEAD_OF_HEADING)
        if kind in ("gap", "line") and self.heading:
            self.heading = False
            return replace(following, before=-BEHIND_HEADING)
        return replace(following, before=-PARAGRAPH) if kind == "gap" else None

    def _told(self, mark: str, at: int, following: Segment) -> Segment:
        found = _NAMED.fullmatch(mark.strip())
        name, value = (found[1].lower(), found[2]) if found else ("", "")
        if name == "pause":
            return replace(following, before=self._seconds(value, at))
        if name == "voice":
            if value and value not in self.voices:
                known = ", ".join(sorted(self.voices)) or "none, for none were given"
                raise self._wrong(at, f"there is no voice {value!r}; known: {known}")
            return replace(following, voice=value or None)
        if name == "lang":
            if value and value.lower() not in self.languages:
                known = ", ".join(sorted(self.languages)) or "its own only"
                raise self._wrong(at, f"this model does not speak {value!r}; it speaks {known}")
            return replace(following, language=value.lower() or None)
        known = ", ".join(["[pause 0.8s]", "[voice NAME]", "[lang fr]", *sorted(self.passing)])
        raise self._wrong(at, f"[{mark}] is unknown; known: {known}; {_ESCAPED}")

    def _seconds(self, value: str, at: int) -> float:
        found = _PAUSE.fullmatch(value)
        seconds = _length(found[1], found[2]) if found else LONGEST + 1
        if seconds > LONGEST:
            raise self._wrong(at, f"pause {value!r}: a pause is written 0.8s or 800ms, up to {LONGEST:.0f} s")
        return seconds

    def _wrong(self, at: int, what: str) -> ValueError:
        return ValueError(f"{position(self.text, at)}: {what}")


def _length(number: str, unit: str) -> float:
    return float(number) / (1000 if unit.lower() == "ms" else 1)


def _merged(segments: list[Segment], text: str) -> tuple[Segment, ...]:
    """Drops segments that say nothing: their silence goes to the next one, or to a last one of its own."""
    found: list[Segment] = []
    length = len(text)
    start, asked, between = None, None, None
    for segment in segments:
        start = segment.chars[0] if start is None else start
        if segment.before is not None and segment.before >= 0:
            asked = round(segment.before + (asked or 0.0), 6)
            if asked > LONGEST:
                what = f"the pauses add up to {asked:g} s here; between two words there may be {LONGEST:.0f} s"
                raise ValueError(f"{position(text, segment.chars[0])}: {what}")
        elif segment.before is not None:
            between = max(-segment.before, between or 0.0)
        if says_something(text[slice(*segment.body)]):
            before = asked if asked is not None else between if found else None
            found.append(replace(segment, chars=(start if found else 0, length), before=before))
            start, asked, between = None, None, None
    if found and asked and start is not None:
        found.append(Segment((start, length), (length, length), asked))
    ends = [*(segment.chars[0] for segment in found[1:]), length]
    return tuple(replace(segment, chars=(segment.chars[0], end)) for segment, end in zip(found, ends))
