"""The blocks of a script in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from .blocks import Block, joined

_LINE_BREAK = re.compile(r"<br\s*/?>", re.I)
_KEY = r"[^\W_][\w .-]*:(?:[ \t\r].*)?\n"
# YAML between lines of "---" at the very beginning. Every line must look like it, since "---" is a rule as well.
_FRONT_MATTER = re.compile(
    rf"\A---[ \t\r]*\n{_KEY}(?:{_KEY}|\#.*\n|-[ \t].*\n|[]}}].*\n|[ \t\r].*\n|\n)*?(?:---|\.\.\.)[ \t\r]*(?=\n|\Z)"
)
_FOOTNOTE = re.compile(r"\[\^[^\[\]\s]+\]")
_STOPS = tuple(".!?…:;,。！？")  # after these, a cell of a table needs no comma


def markdown_blocks(text: str) -> Iterator[Block]:
    """Yields headings, paragraphs, rows of tables, code, and rules; no front matter, and no footnotes."""
    level = 0
    row: list[str] | None = None  # cells of a table's row
    for token in _parser().parse(_FRONT_MATTER.sub(_blank_lines, text)):
        line = token.map[0] + 1 if token.map else 0
        if token.type == "heading_open":
            level = int(token.tag[1:])
        elif token.type == "tr_open":
            row, begins = [], line
        elif token.type == "tr_close" and row is not None:
            if any(row):
                yield Block(_sentence(row), begins)
            row = None
        elif token.type == "inline" and row is not None:
            row.append(joined(["".join(_inline(token.children or []))]))
        elif token.type == "inline":
            yield Block("".join(_inline(token.children or [])), line, level)
            level = 0
        elif token.type in ("fence", "code_block"):
            yield Block(token.content.strip("\n"), line)
        elif token.type == "hr":
            yield Block("", line)


def _parser() -> Any:
    """Returns a parser of CommonMark with tables, and without footnotes."""
    try:
        from markdown_it import MarkdownIt
    except ImportError as error:
        raise ValueError(f"{error}; Markdown needs more: pip install 'chatterbox-opt[reading]'") from error
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    parser.inline.ruler.before("link", "footnote", _footnote_reference)
    parser.block.ruler.before("reference", "footnote", _footnote, {"alt": ["paragraph", "reference"]})
    return parser


def _footnote_reference(state: Any, silent: bool) -> bool:
    """Skips "[^1]". A rule of markdown-it's: returns whether it has moved the state on."""
    found = _FOOTNOTE.match(state.src, state.pos, state.posMax)
    if found:
        state.pos = found.end()
    return found is not None


def _footnote(state: Any, first: int, end: int, silent: bool) -> bool:
    """Skips "[^1]: ..." with its further lines, which are indented after a blank one. A rule of markdown-it's."""
    start = state.bMarks[first] + state.tShift[first]
    found = _FOOTNOTE.match(state.src, start, state.eMarks[first])
    if not (found and state.src.startswith(":", found.end())):
        return False
    if silent:
        return True
    others = state.md.block.ruler.getRules("paragraph")  # what ends a paragraph ends the note
    blank, line = False, first + 1
    while line < end:
        if state.isEmpty(line):
            blank = True
        elif state.sCount[line] - state.blkIndent < 4 and (blank or any(r(state, line, end, True) for r in others)):
            break
        line += 1
    state.line = line
    return True


def _blank_lines(found: re.Match[str]) -> str:
    """Replaces lines so that the following ones keep their numbers."""
    return "\n" * found[0].count("\n")


def _sentence(cells: list[str]) -> str:
    said = [cell for cell in cells if cell]
    return "".join(cell + (" " if cell.endswith(_STOPS) else ", ") for cell in said[:-1]) + said[-1]


def _inline(tokens: list[Any]) -> Iterator[str]:
    for token in tokens:
        if token.type in ("text", "code_inline"):
            yield token.content
        elif token.type == "image":  # what is said in its place may be marked up too
            yield from _inline(token.children or [])
        elif token.type in ("softbreak", "hardbreak"):
            yield "\n"
        elif token.type == "html_inline" and _LINE_BREAK.fullmatch(token.content):
            yield " "  # "\n" would count as a line of the file
