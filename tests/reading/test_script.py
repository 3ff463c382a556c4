"""Parsing of scripts: paragraphs, speakers, chapters and the silence between them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_opt.reading.script import SCENE, TURN, parse
from chatterbox_opt.text.markup import AHEAD_OF_HEADING, BEHIND_HEADING, PARAGRAPH

PLAIN = """# The Lake

Chapter 1: The boat

It was cold. The boat
was gone.

Anna: Who took it?
Ben: Not me,
I was asleep.

* * *

They went home.

# Chapter 2

The end came soon.
"""


def lines(text: str, *how) -> list[list[tuple]]:
    return [[(p.text, p.speaker) for p in chapter.paragraphs] for chapter in parse(text, *how)]


def test_plain_text_with_a_dialogue():
    got = parse(PLAIN, "text", ["Anna", "Ben"])
    assert [c.title for c in got] == ["The Lake", "Chapter 2"]
    assert [(p.text, p.speaker, p.line) for c in got for p in c.paragraphs] == [
        ("The Lake", None, 1), ("Chapter 1: The boat", None, 3), ("It was cold. The boat was gone.", None, 5),
        ("Who took it?", "Anna", 8), ("Not me, I was asleep.", "Ben", 9), ("They went home.", None, 14),
        ("Chapter 2", None, 16), ("The end came soon.", None, 18),
    ]
    pauses = [p.before for c in got for p in c.paragraphs]
    assert pauses == [0.0, AHEAD_OF_HEADING, BEHIND_HEADING, PARAGRAPH, TURN, SCENE, AHEAD_OF_HEADING, BEHIND_HEADING]


@pytest.mark.parametrize(
    ("line", "title"),
    [
        ("# Learning C#", "Learning C#"), ("# Learning C# #", "Learning C#"), ("## One ##  ", "One"), ("# # 1", "# 1"),
        ("# Two\t#", "Two"), ("# ##", ""), ("# ", ""),
    ],
)
@pytest.mark.parametrize("kind", ["text", "markdown"])
def test_hashes_close_a_heading_only_after_a_blank(line, title, kind):
    if kind == "markdown":
        pytest.importorskip("markdown_it", reason="markdown-it-py is not installed: pip install markdown-it-py")
    said = [(p.text, p.heading > 0) for chapter in parse(f"{line}\n\nHello.", kind) for p in chapter.paragraphs]
    assert said == [(title, True)] * bool(title) + [("Hello.", False)]


def test_only_the_cast_speaks_in_a_text():
    """A colon in a sentence does not name a speaker."""
    text = "One thing is sure: nobody came.\nAnna: I did."
    assert lines(text, "text", ["Anna"]) == [[("One thing is sure: nobody came.", None), ("I did.", "Anna")]]
    assert lines(text) == [[(text.replace("\n", " "), None)]]


def test_in_a_dialogue_every_line_says_who_speaks():
    assert lines("Anna: Hello.\nBen: Hi.\nHow are you?", "dialogue") == [
        [("Hello.", "Anna"), ("Hi. How are you?", "Ben")]
    ]
    text = "Dr. O'Neil (angry): Stop: now!\n1st Guard: Halt!\nAt 12:30 or\n12: no.\n安娜：你好\n安娜（生气）：走"
    assert lines(text, "dialogue") == [[
        ("Stop: now!", "Dr. O'Neil"), ("Halt! At 12:30 or 12: no.", "1st Guard"), ("你好", "安娜"), ("走", "安娜"),
    ]]
    assert lines(text, "text", ["1st Guard"])[0][1][1] == "1st Guard"
    with pytest.raises(ValueError, match="line 2: nobody is called 'Bob'; the cast has Anna"):
        parse("Anna: Hello.\nBob: Hi.", "dialogue", ["Anna"])


def test_markdown_is_read_without_its_signs():
    pytest.importorskip("markdown_it", reason="markdown-it-py is not installed: pip install markdown-it-py")
    text = (
        "# A *book*\n\n## One\n\nSome **bold** words, a [link](https://example.com) and `code`.\nThe same.\n\n"
        "- first\n- second\n\n> quoted\n\n---\n\n**Anna:** Hello.\n\n[pause 0.8s] Later.\n\n## Two\n\n"
        "<!-- not said -->\n\nRed,<br>blue,<BR/>\ngreen.\n\n```\nx = 1\n```\n"
    )
    got = parse(text, "markdown", ["Anna"])
    assert [[(p.text, p.heading, p.line) for p in c.paragraphs] for c in got] == [
        [("A book", 1, 1), ("One", 2, 3), ("Some bold words, a link and code. The same.", 0, 5), ("first", 0, 8),
         ("second", 0, 9), ("quoted", 0, 11), ("Hello.", 0, 15), ("[pause 0.8s] Later.", 0, 17)],
        [("Two", 2, 19), ("Red, blue, green.", 0, 23), ("x = 1", 0, 26)],
    ]
    spoken = got[0].paragraphs[6]
    assert (spoken.speaker, spoken.before) == ("Anna", SCENE)


def test_a_script_without_words_is_told():
    for text in ("", " \n\n ", "* * *\n\n---"):
        with pytest.raises(ValueError, match="nothing to say"):
            parse(text)
    with pytest.raises(ValueError, match="markdown"):
        parse("Hello.", "html")


PARTS = st.sampled_from(
    ["a word ", "Anna: ", "Nobody: ", "\n", "\n\n", "\r\n", "Chapter 2\n\n", "* * *\n\n", "é. ", "x", "1"]
)


@given(st.lists(PARTS, max_size=40).map("".join), st.sampled_from([(), ("Anna",)]))
def test_nothing_is_lost_and_nothing_said_twice(text, names):
    try:
        got = parse(text, "text", names)
    except ValueError as error:
        if "nothing to say" not in str(error):
            raise
        assert not re.search(r"\w", text.replace("Anna: ", "") if names else text)
        return
    said = "".join(p.text for c in got for p in c.paragraphs)
    wanted = re.sub(r"(?m)^\s*Anna: +(?=\S)", "", text) if names else text
    assert re.findall(r"\w", said) == re.findall(r"\w", wanted)
    numbers = [p.line for c in got for p in c.paragraphs]
    assert numbers == sorted(numbers)
