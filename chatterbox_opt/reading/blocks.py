"""A block of a script: a paragraph or a heading, as the file has it."""

from __future__ import annotations

import re
from typing import NamedTuple

_WIDE = "\u3001-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uff60\uff66-\uff9f\U00020000-\U0003ffff"
_WIDE_BREAK = re.compile(rf"(?<=[{_WIDE}])\n(?=[{_WIDE}])")  # Chinese and Japanese; Korean has blanks between words


class Block(NamedTuple):
    """A paragraph or heading of the file; `text` keeps its line breaks, and is empty for a rule between scenes."""

    text: str
    line: int
    heading: int = 0


def joined(lines: list[str]) -> str:
    """Returns the lines as one, with blanks where they were wrapped, except in Chinese and Japanese."""
    text = "\n".join(" ".join(line.split()) for line in lines if line.strip())
    return _WIDE_BREAK.sub("", text).replace("\n", " ")
