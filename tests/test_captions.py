"""Caption files, as players read them."""

import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_opt.captions import LINE, LINES, check_kind, cues, shifted, written


def record(text: str, start: float, end: float, words: tuple = ()) -> dict:
    return {"text": text, "start": start, "end": end, **({"words": list(words)} if words else {})}


def timed(text: str, start: float, each: float = 0.5) -> list[dict]:
    return [record(w, start + i * each, start + (i + 1) * each) for i, w in enumerate(text.split())]


RECORDS = [record("Hello there.", 0.0, 1.5), record("A & b <c>", 3661.2, 3662.0004), record("  ", 4.0, 5.0)]


def test_subrip():
    assert written(".srt", RECORDS) == (
        "1\n00:00:00,000 --> 00:00:01,500\nHello there.\n\n2\n01:01:01,200 --> 01:01:02,000\nA & b <c>\n"
    )


def test_webvtt():
    assert written(".vtt", RECORDS) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nHello there.\n\n"
        "01:01:01.200 --> 01:01:02.000\nA &amp; b &lt;c&gt;\n"
    )


def test_json_keeps_what_is_known():
    got = json.loads(written(".json", [{**RECORDS[0], "chars": [0, 12]}], seconds=2.5))
    assert got == {"seconds": 2.5, "pieces": [{"text": "Hello there.", "start": 0.0, "end": 1.5, "chars": [0, 12]}]}


def test_without_word_times_a_piece_is_one_cue_of_short_lines():
    text = "A sentence of a good many words that would not fit on a screen in one line. " * 3
    body = written(".srt", [record(text, 0, 9)]).split("\n", 2)[2]
    assert max(map(len, body.splitlines())) <= LINE
    assert " ".join(body.split()) == " ".join(text.split())


def test_with_word_times_cues_are_short_and_end_with_sentences():
    text = "This is a first sentence of some words. Then comes another one, which is so long that it has to be cut " \
           "somewhere in its middle for it to fit."
    got = list(cues([record(text, 0, 20, timed(text, 0))]))
    assert [len(c.text) <= 2 * LINE for c in got] == [True] * 3
    assert got[0].text == "This is a first sentence of some words."
    assert " ".join(c.text for c in got) == text
    assert all(a.end == b.start for a, b in itertools.pairwise(got))


def test_a_cue_with_word_times_has_two_lines():
    """Of 84 letters at most, though these fill more than two lines if a long word does not fit into the first."""
    text = "A rather long beginning of this line internationalisation, " * 6
    blocks = written(".srt", [record(text, 0, 60, tuple(timed(text, 0)))]).strip().split("\n\n")
    assert max(len(block.split("\n")) - 2 for block in blocks) == LINES


@pytest.mark.parametrize(
    ("at", "wanted"),
    [
        ((1.0, 2.0, 3.0), [(1.0, 2.0), (2.0, 3.0), (3.0, 4.0)]),  # up to the next word or the piece's end
        ((1.0, 2.0, 4.0), [(1.0, 2.0), (2.0, 4.0), (4.0, 4.02), (4.02, 5.0)]),  # nothing is left of the piece
        ((1.0, 1.0, 1.0), [(1.0, 1.02), (1.02, 1.04), (1.04, 4.0)]),
        ((1.0, 1.0002, 4.0), [(1.0, 1.02), (1.02, 4.0), (4.0, 4.02), (4.02, 5.0)]),
    ],
)
def test_a_cue_of_words_without_length_lasts(at, wanted):
    words = tuple(record(f"{'a' * 30}.", start, start) for start in at)
    got = list(cues([record("text", 1.0, 4.0, words), record("More.", 4.0, 5.0)]))
    assert [(c.start, c.end) for c in got] == [pytest.approx(each) for each in [*wanted, (4.0, 5.0)][:4]]
    clocks = re.findall(r"(\S+) --> (\S+)", written(".vtt", [record("text", 1.0, 4.0, words)]))
    assert all(start < end for start, end in clocks)


def test_a_shifted_record_is_later_with_its_words():
    got = shifted(record("a b", 1.0, 2.0, timed("a b", 1.0)), 10.0)
    assert (got["start"], got["end"]) == (11.0, 12.0)
    assert [w["start"] for w in got["words"]] == [11.0, 11.5]


def test_other_kinds_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.sub: captions are one of srt, vtt, json"):
        check_kind(".sub", tmp_path / "a.sub")
    assert written("srt", RECORDS) == written(".srt", RECORDS)
    for kind in (".SRT", ".sub", "..srt", ""):
        with pytest.raises(ValueError, match="are one of srt, vtt, json"):
            written(kind, RECORDS)


@given(st.lists(st.tuples(st.text(max_size=60), st.floats(0, 9), st.booleans()), max_size=6))
def test_a_cue_is_never_broken_by_its_text(rows):
    """No blank line inside, which would end it, and every word in its place."""
    at, records = 0.0, []
    for text, seconds, words in rows:
        records.append(record(text, at, at + seconds, timed(text, at) if words else ()))
        at += seconds
    body = written(".srt", records)
    blocks = re.split(r"\n\n", body.strip("\n")) if body else []
    assert [block.split("\n")[0] for block in blocks] == [str(i + 1) for i in range(len(blocks))]
    said = [r["text"].split() for r in records if r["text"].strip() and r["end"] > r["start"]]
    got = [word for block in blocks for line in block.split("\n")[2:] for word in line.split(" ")]
    assert "".join(got) == "".join(word for words in said for word in words)
