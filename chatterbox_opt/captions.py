"""Captions of speech with their times, as SubRip, WebVTT or JSON. Standard library only.

A record describes a piece of speech in JSON's types: text, start, end (s), words (each with text, start, end), and
possibly more.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from math import inf
from typing import Any, NamedTuple

LINE = 42  # characters per line of a subtitle at most
LINES = 2  # per cue, if the times of its words are known
BRIEFEST = 0.02  # s of a cue whose words take no time: WebVTT has no cue of no length
KINDS = (".srt", ".vtt", ".json")
_ENDS = (".", "!", "?", "…", "。", "！", "？")

Record = dict[str, Any]


class Cue(NamedTuple):
    start: float  # s
    end: float
    text: str


def check_kind(kind: str, where: object) -> None:
    """`where`: what the message begins with."""
    if kind not in KINDS:
        raise ValueError(f"{where}: captions are one of {', '.join(kind[1:] for kind in KINDS)}")


def written(kind: str, records: Sequence[Record], **further: Any) -> str:
    """Returns the text of a file of that `kind`, with or without the dot of its ending; `further` is added to JSON
    beside the pieces."""
    kind = f".{kind.removeprefix('.')}"
    check_kind(kind, repr(kind))
    if kind == ".json":
        return json.dumps({**further, "pieces": list(records)}, ensure_ascii=False, indent=1) + "\n"
    return (srt if kind == ".srt" else vtt)(records)


def shifted(record: Record, seconds: float) -> Record:
    """Returns the record with all times `seconds` later."""
    words = [shifted(word, seconds) for word in record.get("words", [])]
    later = {name: round(record[name] + seconds, 6) for name in ("start", "end")}
    return {**record, **later, **({"words": words} if words else {})}


def srt(records: Sequence[Record]) -> str:
    blocks = [
        f"{i}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{_wrapped(cue.text)}\n"
        for i, cue in enumerate(cues(records), 1)
    ]
    return "\n".join(blocks)


def vtt(records: Sequence[Record]) -> str:
    escaped = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
    blocks = [
        f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{_wrapped(cue.text).translate(escaped)}\n"
        for cue in cues(records)
    ]
    return "\n".join(["WEBVTT\n", *blocks])


def cues(records: Sequence[Record]) -> Iterator[Cue]:
    """Yields a cue for each piece with text and sound, or several short ones if the times of its words are known."""
    earliest = -inf  # the end of the cue before, if that has been made longer
    for cue in _timed(records):
        start = max(cue.start, earliest)
        timeless = _milliseconds(cue.end) <= _milliseconds(start)
        end = start + BRIEFEST if timeless else cue.end
        yield Cue(start, end, cue.text)
        earliest = end if timeless else -inf


def _timed(records: Sequence[Record]) -> Iterator[Cue]:
    """Yields the same cues, of which those of words without length may have none."""
    for record in records:
        if not record["text"].strip() or record["end"] <= record["start"]:
            continue
        if record.get("words"):
            yield from _short(record["words"], record["end"])
        else:
            yield Cue(record["start"], record["end"], record["text"])


def _short(words: Sequence[Record], end: float) -> Iterator[Cue]:
    """`end`: of the piece."""
    held: list[Record] = []
    for word in words:
        text = " ".join(w["text"] for w in held)
        full = len(_lines(f"{text} {word['text']}")) > LINES
        if held and (full or (text.endswith(_ENDS) and len(text) > LINE // 2)):
            yield _cue(held, word["start"])
            held = []
        held.append(word)
    yield _cue(held, end)


def _cue(words: Sequence[Record], following: float) -> Cue:
    """`following`: when the next word or the piece's end comes, up to which words without length are shown."""
    start, end = words[0]["start"], words[-1]["end"]
    timeless = _milliseconds(end) <= _milliseconds(start)
    return Cue(start, following if timeless else end, " ".join(w["text"] for w in words))


def _wrapped(text: str) -> str:
    return "\n".join(_lines(text))


def _lines(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), LINE)


def _milliseconds(seconds: float) -> int:
    return max(0, round(seconds * 1000))


def _clock(seconds: float, point: str) -> str:
    minutes, milliseconds = divmod(_milliseconds(seconds), 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"
