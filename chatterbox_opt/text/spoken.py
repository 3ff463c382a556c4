"""Writes numbers and signs of a text as words: takes the changed words from a library, and keeps all other text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from difflib import SequenceMatcher

from .split import WIDE_CHAR, stop_ends_sentence

_WORD = re.compile(rf"{WIDE_CHAR.pattern}|(?:(?!{WIDE_CHAR.pattern})\S)+")
_MARKS = ".,;:!?…-\"'“”‘’()[]{}«»‹›、，。？！；：\\—–*_"  # not spoken
_ITEM = re.compile(r"(?m)^(?=[ \t]*\d{1,3}\.\s)")  # "1. First"
_SIGN = r"(?:[^\w\s]|_)"
# What libraries would read sign by sign, or run together: lines of signs, rules and underlines, bullets, the lines
# between the cells of a table, and between paragraphs, and the end of a line between two numbers.
_DRAWN = re.compile(
    rf"(?m)(^[ \t]*{_SIGN}(?:[ \t]*{_SIGN}){{2,}}[ \t]*\r?$|(?<!\S){_SIGN}{{3,}}(?!\S)|(?<!\S)\|(?!\S)|"
    r"^[ \t]*[-+*•·–—](?=[ \t])|\n\s*\n|(?<=\d)[ \t]*\r?\n(?=[ \t]*[^\w\s]?\d))"
)
_OPENS = r"[*_]+(?=[^\s*_]+[*_]*[.,;:!?…\"”’)\]]*(?!\S))"  # not of "__init__.py"
_EMPHASIS = re.compile(  # at the ends of a word: "**very**", "_(so)._"
    rf"(?<!\S)([\"“‘(\[]*){_OPENS}|(?<=[^\s*_])[*_]+(?=[.,;:!?…\"”’)\]]*(?!\S))"
)
_LEADING = re.compile(rf"^(?:[\"“‘(\[{{«‹¿¡—–]|{_OPENS})*")  # no apostrophe, which is a part of '90s
_TRAILING = re.compile(r"(?:[.,;:!?…\"'“”’)\]}»›—–]|(?<=[^\s*_])[*_]+)*$")

Span = tuple[int, int]


def as_spoken(text: str, read: Callable[[str], str]) -> str:
    """Returns the text in words. `read` is a library's; it gets the items of a numbered list one by one, which it would
    run together, and nothing that is drawn, which stays. Text it refuses is halved until only single words stay as is.
    """
    return "".join(
        part if drawn % 2 else _as_spoken(part, read)
        for item in _ITEM.split(text) for drawn, part in enumerate(_DRAWN.split(item))
    )


def _as_spoken(text: str, read: Callable[[str], str]) -> str:
    if not text.strip():
        return text
    try:
        return merged(text, read(_plain(text)))
    except Exception:  # each library raises its own for what its grammar lacks
        words = list(re.finditer(r"\S+", text))
        if len(words) == 1:
            return text
        middle = words[len(words) // 2].start()
        return _as_spoken(text[:middle], read) + _as_spoken(text[middle:], read)


def _plain(text: str) -> str:
    """Returns what a library reads of a text: without signs of emphasis, which it names, and on one line, as it would
    join the words around other blanks."""
    return " ".join(_EMPHASIS.sub(r"\1", text).split())


def merged(text: str, said: str) -> str:
    """Returns `text` with the words of `said` where these differ; libraries lose stops, quotes and blanks."""
    old, new = [m.span() for m in _WORD.finditer(text)], [m.span() for m in _WORD.finditer(said)]
    parts, at = [], 0
    for a, b, changed in _blocks(text, said, old, new):
        if not changed:
            continue
        start, end = old[a[0]][0], old[a[1] - 1][1]
        words = said[new[b[0]][0] : new[b[1] - 1][1]] if b[0] < b[1] else ""
        replaced = _marked_as(text, start, end, words)
        parts += [text[at:start], replaced]
        at = end if replaced else end + len(text[end:]) - len(text[end:].lstrip())
    return "".join([*parts, text[at:]])


def _blocks(text: str, said: str, old: list[Span], new: list[Span]) -> Iterator[tuple[Span, Span, bool]]:
    """Yields (words of `text`, words of `said`, whether they differ); a changed block has at least one word of `text`.
    """
    was, now = [text[a:b] for a, b in old], [said[a:b] for a, b in new]
    keys = [_key(word) for word in was], [_key(word) for word in now]
    blocks: list[tuple[Span, Span, bool]] = []
    for kind, a0, a1, b0, b1 in SequenceMatcher(None, *keys, autojunk=False).get_opcodes():
        changed = kind != "equal" and (any(keys[0][a0:a1]) or any(keys[1][b0:b1]))  # marks alone do not count
        if kind == "insert" and not changed:
            continue
        if changed and blocks and not blocks[-1][2] and (kind == "insert" or _moved(was[a0 - 1], now[b0 - 1])):
            (p0, p1), (q0, q1), _ = blocks.pop()  # "$5 million." is "five million dollars."
            if p1 - p0 > 1:
                blocks.append(((p0, p1 - 1), (q0, q1 - 1), False))
            a0, b0 = p1 - 1, q1 - 1
        blocks.append(((a0, a1), (b0, b1), changed))
    return _fused(blocks)


def _moved(was: str, now: str) -> bool:
    """Whether a mark after the word has moved away from it, so that more has come between the two."""
    return was[-1] in ",;:!?" and now[-1] != was[-1]


def _fused(blocks: list[tuple[Span, Span, bool]]) -> Iterator[tuple[Span, Span, bool]]:
    """Merges adjacent changed blocks, and an insertion before the first word with the first block."""
    nothing = (0, 0), (0, 0), False
    held = nothing
    for a, b, changed in [*blocks, nothing]:
        if held[2] and changed:
            held = (held[0][0], a[1]), (held[1][0], b[1]), True
            continue
        if held[2] and held[0][0] == held[0][1] and a[0] < a[1]:
            held = (a[0], a[0] + 1), (held[1][0], b[0] + 1), True
            a, b = (a[0] + 1, a[1]), (b[0] + 1, b[1])
        if held[0][0] < held[0][1]:
            yield held
        held = a, b, changed


def _key(word: str) -> str:
    return word.strip(_MARKS).replace(".", "").casefold()  # p.m. is PM


def _found(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return match[0] if match else ""


def _marked_as(text: str, start: int, end: int, words: str) -> str:
    """Returns `words` with the marks around text[start:end], without an abbreviation's stop that ends no sentence."""
    before = _found(_LEADING, text[start:end])
    after = _found(_TRAILING, text[start + len(before) : end])
    bare = words[len(_found(_LEADING, words)) :].lstrip()
    marks = _found(_TRAILING, bare)
    if after.startswith(".") and not after.startswith(".."):
        ends = stop_ends_sentence(text, end - len(after) + 1, end)
        if text[start + len(before) : end - len(after)].isdigit():
            ends = ends or None  # "1. First item" or an ordinal: the library knows
        if not (marks.startswith(".") if ends is None else ends):
            after = after[1:]
    return before + bare[: len(bare) - len(marks)].rstrip() + after
