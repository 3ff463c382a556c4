"""Parsing of scripts: paragraphs, speakers, chapters and the silence between them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_opt.reading.script import SCENE, TURN, parse
from chatterbox_opt.reading.speakers import check_names
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


def test_the_narrator_is_a_name_like_others():
    text = "narrator: It was cold.\nAnna: Hi."
    wanted = [[("It was cold.", "narrator"), ("Hi.", "Anna")]]
    for kind in ("text", "dialogue"):
        assert lines(text, kind, ["narrator", "Anna"]) == wanted
    with pytest.raises(ValueError, match="line 2: nobody is called 'Anna'; the cast has narrator"):
        parse(text, "dialogue", ["narrator"])


@pytest.mark.parametrize("rule", ["---", "***", "___", "====", "_ _ _", " * * *", "________"])
@pytest.mark.parametrize("around", ["\n", "\n\n"])
def test_a_rule_is_a_pause_and_ends_what_is_before_it(rule, around):
    got = parse(f"Anna: Hi.{around}{rule}{around}Ben: Yo.", "dialogue")[0].paragraphs
    assert [(p.text, p.speaker, p.before) for p in got] == [("Hi.", "Anna", 0.0), ("Yo.", "Ben", SCENE)]
    assert [p.text for p in parse(f"One.{around}{rule}{around}Two.")[0].paragraphs] == ["One.", "Two."]


def test_a_paragraph_of_pauses_is_silence():
    text = "[pause 1s]\n\nHello.\n\n[pause 2s]\n\n[pause 500ms] [pause .1s]\n\nBye. [pause 1s]\n\n[pause 3s]"
    assert [(p.text, p.before) for p in parse(text, markup=True)[0].paragraphs if p.text != "Hello."] == [
        ("Bye. [pause 1s]", 2.6)
    ]
    assert len(lines(text)[0]) == 6, "without marks it is text"
    with pytest.raises(ValueError, match="paragraph at line 3: line 1, column 1: pause '61s'"):
        parse("Hello.\n\n[pause 61s]\n\nBye.", markup=True)
    with pytest.raises(ValueError, match=r"paragraph at line 5: .*add up to 80 s"):
        parse("Hello.\n\n[pause 40s]\n\n[pause 40s]\n\nBye.", markup=True)


def test_a_turn_without_words_is_silence():
    text = "Ben: ...\nAnna: Are you there?\nBen: ...\nAnna: Well?\nBen: —\n“…\nCarl: Yo.\nNo!"
    got = parse(text, "dialogue")[0].paragraphs
    assert [(p.text, p.speaker, p.before) for p in got] == [
        ("Are you there?", "Anna", 0.0), ("Well?", "Anna", 2 * TURN), ("Yo. No!", "Carl", 2 * TURN)
    ]


@pytest.mark.parametrize("markup", [False, True])
@pytest.mark.parametrize("kind", ["text", "markdown"])
def test_a_heading_without_words_is_a_rule(kind, markup):
    if kind == "markdown":
        pytest.importorskip("markdown_it", reason="markdown-it-py is not installed: pip install markdown-it-py")
    got = parse("# One\n\nTwo.\n\n## * * *\n\nThree.\n\n# ⁂\n\nFour.\n\n# \"\n", kind, markup=markup)
    assert [[(p.text, p.before) for p in chapter.paragraphs] for chapter in got] == [
        [("One", 0.0), ("Two.", BEHIND_HEADING), ("Three.", SCENE), ("Four.", SCENE)]
    ]


def test_a_paragraph_of_pauses_and_signs_is_silence():
    text = (
        "Anna: Hi.\n\n[pause 1s] ... [pause 1s] …\n\nAnna: [pause 0.5s] ...\nBen: Yo.\n\n"
        "\\[pause 1s\\] \\[\n\n# [pause 1s]"
    )
    got = parse(text, "dialogue", markup=True)[0].paragraphs
    assert [(p.text, p.before) for p in got] == [("Hi.", 0.0), ("Yo.", 2.5), (r"\[pause 1s\] \[", PARAGRAPH)]


def test_names_have_combining_marks():
    composed, decomposed = "Jos\u00e9", "Jose\u0301"
    text = f"राम: नमस्ते\nสมหญิง: ก\n{decomposed}: Hola.\n{composed}: Sí."
    wanted = [("नमस्ते", "राम"), ("ก", "สมหญิง"), ("Hola.", composed), ("Sí.", composed)]
    assert lines(text, "dialogue") == [wanted]
    assert lines(text, "text", ["राम", "สมหญิง", composed]) == [wanted]
    assert lines(f"{composed}: Hola.", "text", [decomposed]) == [[("Hola.", decomposed)]], "the cast's own spelling"


def test_names_that_no_line_can_have_are_told():
    check_names(["narrator", "1st Guard", "Dr. O'Neil", "राम", "A" * 40])
    wrong = ["Anna & Ben", "A" * 41, "12", " Anna", "Anna (old)", ""]
    for name in wrong:
        with pytest.raises(ValueError, match=re.escape(f"no line can begin with the name {name!r}:")):
            check_names(["Anna", name])


@pytest.mark.parametrize(
    ("line", "heads"),
    [
        ("Chapter 3", True), ("CHAPTER 3: The boat", True), ("Part IV The boat", True), ("Act ii", True),
        ("Chapter Twenty-One", True), ("Part One of the tale", True), ("Part I The End", True), ("Part A", True),
        ("Act I, Scene 2", True), ("Book the First", True), ("Chapter", True), ("Prologue in heaven", True),
        ("Part of me wanted to go.", False), ("Book a table.", False), ("Book two seats.", False), ("Act now.", False),
        ("Act civil.", False), ("Part I liked most.", False), ("Chapters 1 to 3", False),
    ],
)
def test_what_begins_like_a_chapter_is_numbered(line, heads):
    assert (parse(f"{line}\n\nHello.")[0].title == line) == heads


def test_a_role_may_be_called_act():
    text = "Act: Now.\n\nPart: One, two.\n\nBook 1: Here.\n\nPrologue: Two."
    cast = ["Act", "Part", "Book 1", "Prologue"]
    wanted = [("Now.", "Act"), ("One, two.", "Part"), ("Here.", "Book 1"), ("Two.", "Prologue")]
    assert lines(text, "dialogue", cast) == lines(text, "text", cast) == [wanted]
    assert lines(text.replace("Book 1: Here.\n\n", ""), "dialogue") == [[pair for pair in wanted if "1" not in pair[1]]]
    got = parse("Chapter 1: The boat\n\nAnna: Hi.", "dialogue", ["Anna"])
    assert got[0].title == "Chapter 1: The boat"


def test_a_name_alone_on_its_line_speaks_the_next():
    assert lines("Anna:\nHello there.\n\nBen (V.O.) (angry): Hi.\nAnna (low):\nYes.", "dialogue", ["Anna", "Ben"]) == [
        [("Hello there.", "Anna"), ("Hi.", "Ben"), ("Yes.", "Anna")]
    ]
    assert lines("Anna:\nBen: Hi.\n\n安娜：\n你好", "dialogue") == [[("Hi.", "Ben"), ("你好", "安娜")]]
    assert lines("Anna: Hi.\n\nBen:", "dialogue") == [[("Hi.", "Anna"), ("Ben:", None)]], "nothing is lost"


def test_wrapped_lines_of_chinese_and_japanese_are_joined_without_a_blank():
    assert lines("这是中\n文，\n对。\n\nカタ\nカナ and\nmore\n中 文\n\n한국어\n말") == [
        [("这是中文，对。", None), ("カタカナ and more 中 文", None), ("한국어 말", None)]
    ]
    assert lines("安娜：你\n好", "dialogue") == [[("你好", "安娜")]]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_front_matter_tables_and_footnotes_of_markdown(newline):
    pytest.importorskip("markdown_it", reason="markdown-it-py is not installed: pip install markdown-it-py")
    text = (
        "---\ntitle: My Book\ntags:\n  - a\n\n# a comment\nauthor: X\n---\n\nText[^1] here, `[^2]`,\n"
        "~~gone~~[^note].\n\n[^1]: Of two words\nand more\n\n    and more\n\n[^note]: One\n# Head\n\n"
        "| a | b |\n|---|---|\n| One. | **Two** |\n| | c |\n| | |\n\nEnd."
    )
    got = parse(text.replace("\n", newline), "markdown")
    assert [(p.text, p.line) for chapter in got for p in chapter.paragraphs] == [
        ("Text here, [^2], gone.", 10), ("Head", 19), ("a, b", 21), ("One. Two", 23), ("c", 24), ("End.", 27),
    ]


@pytest.mark.parametrize("begin", ["---\nOnce: upon\na time.\n\n---\n\n", "---\n\nOnce: upon a time.\n\n---\n\n"])
def test_a_rule_at_the_beginning_is_no_front_matter(begin):
    pytest.importorskip("markdown_it", reason="markdown-it-py is not installed: pip install markdown-it-py")
    assert lines(f"{begin}End.", "markdown") == [[("Once: upon a time.", None), ("End.", None)]]


def test_markdown_is_read_without_its_signs():
    pytest.importorskip("markdown_it", reason="markdown-it-py is not installed: pip install markdown-it-py")
    text = (
        "# A *book*\n\n## One\n\nSome **bold** words, a [link](https://example.com) and `code`.\nThe same.\n\n"
        "- first\n- second\n\n> quoted\n\n---\n\n**Anna:** Hello.\n\n[pause 0.8s] Later.\n\n## Two\n\n"
        "<!-- not said -->\n\n![a *small* `boat`](boat.png) Red,<br>blue,<BR/>\ngreen.\n\n```\nx = 1\n```\n"
    )
    got = parse(text, "markdown", ["Anna"])
    assert [[(p.text, p.heading, p.line) for p in c.paragraphs] for c in got] == [
        [("A book", 1, 1), ("One", 2, 3), ("Some bold words, a link and code. The same.", 0, 5), ("first", 0, 8),
         ("second", 0, 9), ("quoted", 0, 11), ("Hello.", 0, 15), ("[pause 0.8s] Later.", 0, 17)],
        [("Two", 2, 19), ("a small boat Red, blue, green.", 0, 23), ("x = 1", 0, 26)],
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
    name = r"(?m)^\s*Anna:(?: +(?=\S)| *(?:\r\n|\n)(?= *[^\s*]))"  # with something after it, or on the next line
    wanted = re.sub(name, "", text) if names else text
    assert re.findall(r"\w", said) == re.findall(r"\w", wanted)
    numbers = [p.line for c in got for p in c.paragraphs]
    assert numbers == sorted(numbers)
