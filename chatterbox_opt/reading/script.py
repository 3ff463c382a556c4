"""Parses a script into chapters of paragraphs: plain text, Markdown, or a dialogue of `Name: line`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ..text.markup import AHEAD_OF_HEADING, BEHIND_HEADING, PARAGRAPH

KINDS = ("text", "markdown", "dialogue")
SCENE, TURN = 1.5, 0.4  # s of silence: at a rule between paragraphs; between the lines of two speakers
CHAPTER = 2  # headings down to this level begin a chapter

_BREAK = re.compile(r"\r\n?|\n")
# "Anna: ", "1st Guard: ", "Anna (angry): ", "安娜："; a time such as "12: " has no letter
_NAME = re.compile(
    r"\s*((?=[\d .'’-]*[^\W\d_])[^\W_][\w .'’-]{0,39}?)\s*(?:[(（][^()（）]*[)）]\s*)?(?::\s+|：\s*)(?=\S)"
)
_LINE_BREAK = re.compile(r"<br\s*/?>", re.I)
_MARKED = re.compile(r"\s{0,3}(#{1,6})\s+(.*?)\s*(?:(?<=\s)#+\s*)?")  # "# One #"; the last # of "# On C#" is text
_NAMED = re.compile(r"\s*(chapter|part|book|act|scene|prologue|epilogue|preface|introduction)\b.{0,70}", re.I)


@dataclass(frozen=True)
class Paragraph:
    """Text that one speaker says without interruption."""

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


class Block(NamedTuple):
    """A paragraph or heading of the file; `text` keeps its line breaks, and is empty for a rule between scenes."""

    text: str
    line: int
    heading: int = 0


def parse(text: str, kind: str = "text", names: Collection[str] = ()) -> list[Chapter]:
    """Returns the chapters. `names` are those of the cast: in text and Markdown, `Name: line` changes the speaker only
    for these. In a dialogue it always does, and unknown names raise ValueError if there is a cast."""
    if kind not in KINDS:
        raise ValueError(f"a script is one of {', '.join(KINDS)}, not {kind!r}")
    text = text.removeprefix("\ufeff")
    blocks = _markdown(text) if kind == "markdown" else _plain(text)
    paragraphs = [p for block in blocks for p in _paragraphs(block, kind == "dialogue", names)]
    chapters = _chapters(_paced(paragraphs))
    if not chapters:
        raise ValueError("the script has nothing to say")
    return chapters


def _plain(text: str) -> Iterator[Block]:
    """Yields the blocks of plain text, separated by blank lines. Headings are "# ..." lines, and single lines that
    begin like "Chapter 3"."""
    held: list[str] = []
    first = 1
    for number, line in enumerate([*_BREAK.split(text), ""], 1):
        marked = _MARKED.fullmatch(line)
        if held and (marked or not line.strip()):
            named = len(held) == 1 and _NAMED.fullmatch(held[0])
            yield Block("\n".join(held), first, CHAPTER if named else 0)
            held = []
        if marked:
            yield Block(marked[2], number, len(marked[1]))
        elif line.strip():
            first = first if held else number
            held.append(line.strip())


def _markdown(text: str) -> Iterator[Block]:
    try:
        from markdown_it import MarkdownIt
    except ImportError as error:
        raise ValueError(f"{error}; Markdown needs more: pip install 'chatterbox-opt[reading]'") from error
    level = 0
    for token in MarkdownIt("commonmark").parse(text):
        line = token.map[0] + 1 if token.map else 0
        if token.type == "heading_open":
            level = int(token.tag[1:])
        elif token.type == "inline":
            yield Block("".join(_inline(token.children or [])), line, level)
            level = 0
        elif token.type in ("fence", "code_block"):
            yield Block(token.content.strip("\n"), line)
        elif token.type == "hr":
            yield Block("", line)


def _inline(tokens: list[Any]) -> Iterator[str]:
    for token in tokens:
        if token.type in ("text", "code_inline", "image"):
            yield token.content
        elif token.type in ("softbreak", "hardbreak"):
            yield "\n"
        elif token.type == "html_inline" and _LINE_BREAK.fullmatch(token.content):
            yield " "  # "\n" would count as a line of the file


def _paragraphs(block: Block, dialogue: bool, names: Collection[str]) -> Iterator[Paragraph]:
    """Yields one paragraph per speaker's line; lines without a name continue the one before."""
    if block.heading:
        yield Paragraph(_joined([block.text]), block.line, block.heading)
        return
    if not re.search(r"\w", block.text):
        yield Paragraph("", block.line)
        return
    held: list[str] = []
    speaker, first = None, block.line
    for number, line in enumerate(_BREAK.split(block.text), block.line):
        found = _NAME.match(line)
        name = found[1] if found else None
        if dialogue and name and names and name not in names:
            raise ValueError(f"line {number}: nobody is called {name!r}; the cast has {', '.join(sorted(names))}")
        if found and name and (name in names or dialogue):
            if held:
                yield Paragraph(_joined(held), first, speaker=speaker)
            held, speaker, first, line = [], name, number, line[found.end() :]
        held.append(line)
    yield Paragraph(_joined(held), first, speaker=speaker)


def _joined(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


def _paced(paragraphs: list[Paragraph]) -> Iterator[Paragraph]:
    """Yields the paragraphs with the silence before each set, and drops rules between scenes."""
    before, last = 0.0, None
    for p in paragraphs:
        if not p.text:
            before = SCENE if last else before
            continue
        if last is not None and before != SCENE:
            turn = p.speaker != last.speaker and None not in (p.speaker, last.speaker)
            before = TURN if turn else BEHIND_HEADING if last.heading else PARAGRAPH
            before = AHEAD_OF_HEADING if p.heading else before
        yield replace(p, before=before)
        before, last = 0.0, p


def _chapters(paragraphs: Iterator[Paragraph]) -> list[Chapter]:
    """Groups paragraphs into chapters. Headings that directly follow each other open one chapter."""
    found: list[Chapter] = []
    for p in paragraphs:
        opens = 0 < p.heading <= CHAPTER and found and any(not q.heading for q in found[-1].paragraphs)
        if opens or not found:
            found.append(Chapter())
        found[-1].paragraphs.append(p)
    return found
