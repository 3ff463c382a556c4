"""Marks in a text: what they do, errors for wrong ones, and that no text is lost."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_opt.config import MODELS
from chatterbox_opt.marks import marked
from chatterbox_opt.text.markup import (
    AHEAD_OF_HEADING,
    BEHIND_HEADING,
    PARAGRAPH,
    language_mark,
    parse,
    pauses,
    unescaped,
    without_marks,
)

EVENTS = ("[chuckle]", "[clear throat]")


def said(text: str, **known) -> list[tuple[str, float | None]]:
    return [(text[slice(*s.body)], s.before) for s in parse(text, **known)]


def test_a_text_without_marks_is_one_segment():
    assert said("Hello there.") == [("Hello there.", None)]


def test_pauses_stand_between_what_is_said():
    assert said("One. [pause 0.8s] Two.") == [("One.", None), ("Two.", 0.8)]
    assert said("One. [pause 250ms][PAUSE .5s] Two.") == [("One.", None), ("Two.", 0.75)]
    assert said("[pause 1s] One. [pause 2s]") == [("One.", 1.0), ("", 2.0)]


def test_pauses_are_counted_without_parsing():
    text = r"[pause 60s] One. [PAUSE\t.5s][ pause 250 ms ] Two \[pause 9s] [pause 9] [pause9s] [voice pause 9s]"
    assert pauses(text.replace("\\t", "\t")) == 60.75
    assert pauses("") == 0


def test_marks_are_left_out_without_parsing():
    text = r"One [ pause 1s ]two [VOICE Anna][lang]\[lang fr\] [chuckle] [language] [lang fr"
    assert " ".join(without_marks(text).split()) == r"One two \[lang fr\] [chuckle] [language] [lang fr"
    assert language_mark("One [lang fr] deux [LANG de] drei [voice] [language es]") == "[LANG de]"
    assert language_mark(r"One \[lang fr\] two") is None


def test_a_long_mark_is_told_at_once():
    start = time.thread_time()
    with pytest.raises(ValueError, match="is unknown"):
        parse("[x y" + " " * 99_900 + "z]")
    assert time.thread_time() - start < 5  # measured: 1 ms; a quadratic search would take 45 s


def test_as_many_pauses_as_are_wanted_between_words():
    assert said("One. [pause 60s] Two. [pause 60s]") == [("One.", None), ("Two.", 60.0), ("", 60.0)]
    assert said("One." + "[pause 0.1s]" * 600 + "Two.")[1] == ("Two.", 60.0)


def test_paragraphs_and_headings_pause_longer_than_sentences():
    text = "# A title\nFirst. Still first,\nwrapped.\n\nSecond.\r\n\r\n \r\n## Next\r\n\r\nThird."
    assert said(text) == [
        ("A title", None), ("First. Still first,\nwrapped.", BEHIND_HEADING), ("Second.", PARAGRAPH),
        ("Next", AHEAD_OF_HEADING), ("Third.", BEHIND_HEADING),
    ]
    assert said("One.\n\n[pause 0.2s]\n\nTwo.")[1] == ("Two.", 0.2), "a pause that is asked for is the pause"


def test_voices_and_languages_hold_until_the_next():
    text = "One [voice Anna Lee] two [lang FR] trois [voice] quatre [lang] five"
    got = parse(text, voices=["Anna Lee"], languages=["fr"])
    assert [(s.voice, s.language) for s in got] == [
        (None, None), ("Anna Lee", None), ("Anna Lee", "fr"), (None, "fr"), (None, None)
    ]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('"[voice Anna]Hello there.[voice]" said Anna.', [("Hello there.", None), ('" said Anna.', None)]),
        ('[voice Anna]Hello there.[voice]"', [("Hello there.", None)]),
        ("Wait [pause 1s].", [("Wait", None), ("", 1.0)]),
        ("Wait [pause 1s]. [pause 0.5s] Go.", [("Wait", None), ("Go.", 1.5)]),
        ("Hi.\n\n---\n\nYou.", [("Hi.", None), ("You.", PARAGRAPH)]),
        ("# One\n***\nTwo [voice Anna]?[voice] — [lang fr]trois", [
            ("One", None), ("***\nTwo", BEHIND_HEADING), ("trois", None),
        ]),
        ("One.\n\n[chuckle]\n\n2", [("One.", None), ("[chuckle]", PARAGRAPH), ("2", PARAGRAPH)]),
    ],
)
def test_what_has_no_letter_is_no_utterance_of_its_own(text, wanted):
    known = dict(passing=EVENTS, voices=["Anna"], languages=["fr"])
    assert said(text, **known) == wanted
    assert "".join(text[slice(*s.chars)] for s in parse(text, **known)) == text


def test_what_the_model_reads_itself_passes_through():
    assert said("Oh [chuckle] well.", passing=EVENTS) == [("Oh [chuckle] well.", None)]
    with pytest.raises(ValueError, match=r"line 1, column 4: \[chuckle\] is unknown"):
        parse("Oh [chuckle] well.")


def test_a_vocabulary_is_looked_through_once_for_the_sounds_in_it():
    class Tokenizer(list):
        __hash__ = object.__hash__
        asked = 0

        def get_vocab(self):
            self.asked += 1
            return dict.fromkeys(self)

    tokenizer = Tokenizer(["[chuckle]", "[UNK]", "a"])
    for _ in range(3):
        assert len(marked("Oh [chuckle] well.", True, MODELS["turbo"], tokenizer, None)[0]) == 1
    assert tokenizer.asked == 1
    tokenizer.append("[sigh]")
    assert len(marked("Oh [sigh] well.", True, MODELS["turbo"], tokenizer, None)[0]) == 1


def test_brackets_that_are_no_marks_are_escaped():
    ((text, _),) = said(r"See \[1\] there.")
    assert unescaped(text) == "See [1] there."


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("One.\n\nTwo [shout] three", r"line 3, column 5: \[shout\] is unknown; known: \[pause"),
        ("One.\r\nTwo [speed 2]", r"line 2, column 5"),
        ("A [voice Bob] b", "no voice 'Bob'; known: Anna"),
        ("A [lang xx] b", "does not speak 'xx'; it speaks fr"),
        ("A [pause] b", "0.8s or 800ms"),
        ("A [pause 900s] b", "up to 60 s"),
        ("A [pause 31s][voice Anna]\n[pause 30s] b", r"line 2, column 1: the pauses add up to 61 s here"),
        ("A [pause 60s] [pause 1ms]", r"line 1, column 15: .* may be 60 s"),
        ("A [pause 0.5s b", r"line 1, column 3: this \[ has no \]"),
        ("[pause 1s]", "nothing to say"),
        (" \n ", "nothing to say"),
        ('"[pause 1s].\n\n---', "nothing to say"),
    ],
)
def test_what_is_wrong_is_told_with_its_position(text, told):
    with pytest.raises(ValueError, match=told):
        parse(text, voices=["Anna"], languages=["fr"])


PARTS = st.sampled_from(
    ["Hello. ", "a", " ", "\n", "\r\n", "\n\n", "# ", "## b\n", "[pause 0.5s]", "[voice Anna]", "[lang fr]", "[lang]",
     "[chuckle]", "\\[x\\]", "]", "é", "字。", "\t", "word "]
)


@given(st.lists(PARTS, max_size=30).map("".join))
def test_spans_add_up_and_no_character_is_lost(text):
    try:
        got = parse(text, EVENTS, ["Anna"], ["fr"])
    except ValueError as error:
        if "nothing to say" not in str(error):
            raise
        return
    edges = [0, *(s.chars[1] for s in got)]
    assert [s.chars[0] for s in got] == edges[:-1]
    assert edges[-1] == len(text)
    for segment in got:
        first, end = segment.body
        assert segment.chars[0] <= first <= end <= segment.chars[1]
        around = text[segment.chars[0] : first] + text[end : segment.chars[1]]
        for mark in ("[pause 0.5s]", "[voice Anna]", "[lang fr]", "[lang]"):
            around = around.replace(mark, "")
        assert not any(map(str.isalnum, around)), "a character that is no mark is said by nobody"
        assert first == end or any(map(str.isalnum, text[first:end])), "there is nothing to say"
        assert not any(mark in text[first:end] for mark in ("[pause", "[voice", "[lang"))
        assert segment.before is None or segment.before >= 0


@given(st.text(max_size=200))
def test_any_text_is_parsed_or_told_where_it_is_wrong(text):
    try:
        got = parse(text)
    except ValueError as error:
        if "column" not in str(error) and "nothing to say" not in str(error):
            raise
    else:
        assert "".join(text[slice(*s.chars)] for s in got) == text
