"""Parses a script into chapters of paragraphs: plain text, Markdown, or a dialogue of `Name: line`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

from ..text import markup as marks
from ..text.markup import AHEAD_OF_HEADING, BEHIND_HEADING, PARAGRAPH
from ..text.split import says_something
from .blocks import Block, joined
from .markdown import markdown_blocks
from .speakers import Speakers, composed

KINDS = ("text", "markdown", "dialogue")
SCENE, TURN = 1.5, 0.4  # s of silence: at a rule between paragraphs; between the lines of two speakers
CHAPTER = 2  # headings down to this level begin a chapter

_BREAK = re.compile(r"\r\n?|\n")
_MARKED = re.compile(r"\s{0,3}(#{1,6})\s+(.*?)\s*(?:(?<=\s)#+\s*)?")  # "# One #"; the last # of "# On C#" is text
_RULE = re.compile(r"\s*(?:[-–—*_=~+•·⁂#]\s*){3,}")
_PAUSES = re.compile(r"(?<!\\)\[\s*pause\b[^\[\]]*\]", re.I)


@dataclass(frozen=True)
class Paragraph:
    """Text that one speaker says without interruption; empty for a rule, and for a turn in which nothing is said."""

    text: str
    line: int  # of the file, where it begins
    heading: int = 0  # its level; 0: none
    speaker: str | None = None
    before: float = PARAGRAPH  # s of silence ahead of it


@dataclass
class Chapter:
    paragraphs: list[Paragraph] = field(default_factory=list)

    @property
    def title(self) -> str | None:
        return next((p.text for p in self.paragraphs if p.heading), None)


def parse(text: str, kind: str = "text", names: Collection[str] = (), markup: bool = False) -> list[Chapter]:
    """Returns the chapters. `names` are those of the cast: in text and Markdown, `Name: line` changes the speaker only
    for these. In a dialogue it always does, and unknown names raise ValueError if there is a cast. With `markup`,
    paragraphs of pauses only become silence."""
    if kind not in KINDS:
        raise ValueError(f"a script is one of {', '.join(KINDS)}, not {kind!r}")
    text = text.removeprefix("\ufeff")
    speakers = Speakers(kind == "dialogue", {composed(name): name for name in names})
    blocks = markdown_blocks(text) if kind == "markdown" else _plain(text, speakers)
    paragraphs = [p for block in blocks for p in _paragraphs(block, speakers)]
    chapters = _chapters(_paced(paragraphs, markup))
    if not chapters:
        raise ValueError("the script has nothing to say")
    return chapters


def _plain(text: str, speakers: Speakers) -> Iterator[Block]:
    """Yields the blocks of plain text, separated by blank lines and rules. Headings are "# ..." lines, and single lines
    that begin like "Chapter 3"."""
    held: list[str] = []
    first = 1
    for number, line in enumerate([*_BREAK.split(text), ""], 1):
        marked = _MARKED.fullmatch(line)
        rule = not marked and _RULE.fullmatch(line)
        if held and (marked or rule or not line.strip()):
            heads = len(held) == 1 and speakers.heads(held[0])
            yield Block("\n".join(held), first, CHAPTER if heads else 0)
            held = []
        if marked:
            yield Block(marked[2], number, len(marked[1]))
        elif rule:
            yield Block("", number)
        elif line.strip():
            first = first if held else number
            held.append(line.strip())


def _paragraphs(block: Block, speakers: Speakers) -> Iterator[Paragraph]:
    """Yields one paragraph per speaker's line; lines without a name continue the one before."""
    if not says_something(block.text):
        yield Paragraph("", block.line)
        return
    lines = _BREAK.split(block.text)
    if block.heading:
        yield Paragraph(joined(lines), block.line, block.heading)
        return
    held: list[str] = []
    speaker, first = None, block.line
    for number, line in enumerate(lines, block.line):
        found = speakers.of(line, number, number == block.line + len(lines) - 1)
        if found:
            yield from _turn(held, first, speaker)
            held, first, (speaker, line) = [], number, found
        held.append(line)
    yield from _turn(held, first, speaker)


def _turn(lines: list[str], first: int, speaker: str | None) -> Iterator[Paragraph]:
    if text := joined(lines):
        yield Paragraph(text if says_something(text) else "", first, speaker=speaker)


def _paced(paragraphs: list[Paragraph], markup: bool) -> Iterator[Paragraph]:
    """Yields the paragraphs with the silence before each set. Drops what says nothing, such as rules between scenes
    and, with `markup`, paragraphs of pauses only: it is the silence before the next paragraph."""
    last, least, pauses = None, 0.0, ""
    for p in paragraphs:
        if not p.text:
            least = max(least, SCENE if p.speaker is None else 2 * TURN)  # ahead of the silent turn and behind it
        elif markup and not says_something(_PAUSES.sub("", p.text)):
            pauses += "".join(_PAUSES.findall(p.text))
            _seconds(pauses, p.line)  # here the line is known that is wrong
        else:
            before = max(least, _between(last, p)) if last is not None else 0.0
            yield replace(p, before=_seconds(pauses, p.line) if pauses else before)
            last, least, pauses = p, 0.0, ""


def _between(last: Paragraph, p: Paragraph) -> float:
    turn = p.speaker != last.speaker and None not in (p.speaker, last.speaker)
    return AHEAD_OF_HEADING if p.heading else TURN if turn else BEHIND_HEADING if last.heading else PARAGRAPH


def _seconds(pauses: str, line: int) -> float:
    try:
        (segment,) = marks.parse(f"{pauses} x")
    except ValueError as error:
        raise ValueError(f"paragraph at line {line}: {error}") from error
    return segment.before or 0.0


def _chapters(paragraphs: Iterator[Paragraph]) -> list[Chapter]:
    """Groups paragraphs into chapters. Headings that directly follow each other open one chapter."""
    found: list[Chapter] = []
    for p in paragraphs:
        opens = 0 < p.heading <= CHAPTER and found and any(not q.heading for q in found[-1].paragraphs)
        if opens or not found:
            found.append(Chapter())
        found[-1].paragraphs.append(p)
    return found
