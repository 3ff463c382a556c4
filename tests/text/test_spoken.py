"""Numbers, money, dates and units as people say them, and everything else unchanged."""

from __future__ import annotations

import importlib.util
import logging
import re
import sys
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chatterbox_opt.text import libraries
from chatterbox_opt.text.pronounce import Pronunciations
from chatterbox_opt.text.reading import Reading, pieces
from chatterbox_opt.text.split import split_text, width
from chatterbox_opt.text.spoken import as_spoken, merged

needs_wetext = pytest.mark.skipif(
    importlib.util.find_spec("wetext") is None, reason="wetext is not installed: pip install 'chatterbox-opt[text]'"
)

ENGLISH = {
    # numbers
    "I have 3 apples.": "I have three apples.",
    "It is 0.5 of it.": "It is zero point five of it.",
    "Pi is 3.14159 or so.": "Pi is three point one four one five nine or so.",
    "There were 1,000,000,000 of them.": "There were one billion of them.",
    "Half is 50%.": "Half is fifty percent.",
    "Take 1/2 cup.": "Take one half cup.",
    "It is 3 1/2 miles.": "It is three and a half miles.",
    "See pages 10-20.": "See pages ten to twenty.",
    "It has 3, 4, and 5.": "It has three, four, and five.",
    # ordinals
    "He came 1st.": "He came first.",
    "The 2nd of 3 parts.": "The second of three parts.",
    "In the 21st century.": "In the twenty first century.",
    # years and dates
    "He was born in 1984.": "He was born in nineteen eighty four.",
    "In 2024, it was new.": "In twenty twenty four, it was new.",
    "It was the '90s.": "It was the nineties.",
    "Since 2024-01-03.": "Since the third of january twenty twenty four.",
    "On January 3, 2024.": "On the third of January twenty twenty four.",
    # times
    "At 10:30 p.m. we left.": "At ten thirty p.m. we left.",
    "We left at 5:30 p.m.": "We left at five thirty p.m.",
    "Be there by 10 p.m. on Monday.": "Be there by ten p.m. on Monday.",
    "At 14:05.": "At fourteen o five.",
    "It is 5:00 now.": "It is five o'clock now.",
    # money
    "It cost £5 a day.": "It cost five pounds a day.",
    "It has €1,200,000.": "It has one million two hundred thousand euros.",
    "He won $2.5 million.": "He won two point five million dollars.",
    'We paid "$5 million." Then we left.': 'We paid "five million dollars." Then we left.',
    "It is worth $5M.": "It is worth five million dollars.",
    # units
    "He ran 5 km.": "He ran five kilometers.",
    "He weighs 80 kg, more or less.": "He weighs eighty kilograms, more or less.",
    "A 25 min. walk.": "A twenty five minutes walk.",
    "Drive at 60 mph!": "Drive at sixty miles per hour!",
    "It is 20°C.": "It is twenty degrees Celsius.",
    "It is -5 degrees.": "It is negative five degrees.",
    "The “5 km” run.": "The “five kilometers” run.",
    # abbreviations and signs
    "Dr. Smith is here.": "doctor Smith is here.",
    "Ask A & B.": "Ask A and B.",
    "C++ is a language.": "C plus plus is a language.",
    "2+2=4": "two plus two equals four",
    # names that are read letter by letter or as words are left to the model
    "NASA launched it.": "NASA launched it.",
    "The FBI and the BBC.": "The FBI and the BBC.",
    "An MP3 file.": "An MP three file.",
    # addresses and telephones
    "See www.example.org today.": "See WWW dot example dot org today.",
    "Mail bob@site.org now.": "Mail bob at site dot org now.",
    "Call 202-555-0143.": "Call two zero two, five five five, zero one four three.",
    # numbered lists
    "1. First item": "one. First item",
    "Do this:\n1. Go.\n  2. Stop\n\nThen\n10. rest.": "Do this:\none. Go.\n  two. Stop\n\nThen\nten. rest.",
    # lines, columns, and what is drawn
    "10\n20": "ten\ntwenty",
    "Score 3\n1/2 cup": "Score three\none half cup",
    "It costs $12.50\n3 items are left.": "It costs twelve point five dollars\nthree items are left.",
    "Open __init__.py now.": "Open underscore underscore init underscore underscore.py now.",
    "Buy 10 kg\n- Second 5 km\n- Third": "Buy ten kilograms\n- Second five kilometers\n- Third",
    "* It has 5\n+ 6 and\n  • 7": "* It has five\n+ six and\n  • seven",
    "Price:\t$5\tTax:\t$1": "Price:\tfive dollars\tTax:\tone dollar",
    "He had 5.\n\n6 were gone\r\n7 were there.": "He had five.\n\nsix were gone\r\nseven were there.",
    "Part 2\n======\nIt ---- 5 _____ ends.\n* * *\n": "Part two\n======\nIt ---- five _____ ends.\n* * *\n",
    "| a | 5 km |\n|---|---|\n| b | 3 |": "| a | five kilometers |\n|---|---|\n| b | three |",
    "3 + 4 = 7": "three plus four equals seven",
    "2 * 3 and a * b": "two times three and a asterisk b",
    # emphasis
    "It is **very** good, _so (5) good!_": "It is **very** good, _so (five) good!_",
    "Run **5 km.** Then “*$3.50*” it is.": "Run **five kilometers.** Then “*three point five dollars*” it is.",
    "It is $5* or so.": "It is five dollars* or so.",
    # nothing to do
    'I read it. Hello there, it\'s fine; "nothing" to do...': 'I read it. Hello there, it\'s fine; "nothing" to do...',
    "She said—no, really?!  [chuckle]\n\nWell.": "She said—no, really?!  [chuckle]\n\nWell.",
}
OTHERS = [
    ("zh", "他今年5岁了。", "他今年五岁了。"),
    ("zh", "我在2024年1月3日花了3.5元。", "我在二零二四年一月三日花了三点五元。"),
    ("ja", "午後5時30分に1,200円を払った。", "午後五時三十分に千二百円を払った。"),
]


@needs_wetext
@pytest.mark.parametrize("text", ENGLISH)
def test_english(text):
    assert as_spoken(text, libraries.reader("en", "wetext")) == ENGLISH[text]


@needs_wetext
@pytest.mark.parametrize(("language", "text", "said"), OTHERS)
def test_chinese_and_japanese(language, text, said):
    assert as_spoken(text, libraries.reader(language, "wetext")) == said


@needs_wetext
def test_what_a_library_stumbles_over_costs_that_word_alone():
    """wetext raises for "+1", and for every text with it."""
    read = libraries.reader("en", "wetext")
    with pytest.raises(AssertionError):
        read("+1 202")
    said = as_spoken("He has 3 dogs and dialled +1 on 5 days.", read)
    assert said == "He has three dogs and dialled +1 on five days."


@needs_wetext
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Nd", "Nl", "No"]), max_size=60))
def test_any_text_comes_through(text):
    said = as_spoken(text, libraries.reader("en", "wetext"))
    assert bool(said.strip()) == bool(text.strip())


@given(st.text(max_size=80))
def test_a_library_that_changes_nothing_or_blanks_only_changes_nothing(text):
    assert merged(text, text) == text
    assert merged(text, " ".join(text.split())) == text


@given(st.text(max_size=80))
def test_a_library_that_refuses_changes_nothing(text):
    def refuse(_):
        raise RuntimeError("no way through")

    assert as_spoken(text, refuse) == text


@example(".", ". .")
@example("5 a", "a")
@example(". 5", "a .")
@given(st.text("ab5$ .,\"'\n", max_size=40), st.text("ab xyz.,\"", max_size=40))
def test_what_nobody_says_stays_whatever_a_library_makes_of_it(text, said):
    out = merged(text, said)
    if out.strip():
        assert out[: len(out) - len(out.lstrip())] == text[: len(text) - len(text.lstrip())]
    if not any(c in text for c in "ab5$"):
        assert out == text or any(c in said for c in "abxyz")


def test_a_stop_of_an_abbreviation_goes_with_it_and_a_sentences_stays():
    assert merged("Dr. Who met St. Paul.", "Doctor Who met Saint Paul.") == "Doctor Who met Saint Paul."
    assert merged("It is 5 km. He ran.", "It is five kilometers. He ran.") == "It is five kilometers. He ran."
    assert merged("It took 5 min.", "It took five minutes") == "It took five minutes."
    assert merged('He ran "5 m." Then', "He ran five m Then") == 'He ran "five m." Then'
    assert merged("1. First\n2. Second", "one. First two. Second") == "one. First\ntwo. Second"
    assert merged("Am 3. Januar.", "Am dritter Januar.") == "Am dritter Januar."


def test_what_a_library_puts_ahead_of_all_words_is_taken_over():
    assert merged('"Smith," he said - so.', "mister Smith he said so") == '"mister Smith," he said - so.'


# ---- who reads -----------------------------------------------------------------------------------


def test_nobody_reads_unless_asked():
    assert Reading.of("en") is None
    assert Reading.of(None, spoken=False, pronounce=None) is None


def test_a_part_of_a_text_has_its_own_language_and_voice(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr("chatterbox_opt.text.reading.reader", lambda language, _: lambda text: text + " " + language)
    names = Pronunciations({"a": "b"}, voices={"anna": Pronunciations({"a": "c"})})
    made = Reading.of("en", True, names)
    assert made.steps()("a") == "b en"
    assert made.steps("fr", "anna")("a") == "c fr"


def test_the_lighter_library_goes_first_and_another_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert libraries.choose("en", True) == "wetext"
    assert libraries.choose("de", True) == "nemo"
    assert libraries.choose("en", "nemo") == "nemo"


def test_errors_say_what_helps(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"chatterbox-opt\[text\]"):
        Reading.of("en", True)
    with pytest.raises(ValueError, match="pip install nemo_text_processing"):
        Reading.of("de", True)
    with pytest.raises(ValueError, match="no library here reads 'sw' out; known are ar, de, en"):
        Reading.of("sw", True)
    with pytest.raises(ValueError, match="'wetext', 'nemo' are known"):
        Reading.of("en", "espeak")
    with pytest.raises(ValueError, match="give a language_id"):
        Reading.of(None, True)


@pytest.fixture
def loaded(monkeypatch):
    """Returns a function that makes a class the normalizer of both libraries, neither of which has been loaded yet."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    for load in (libraries._wetext, libraries._nemo):
        load.cache_clear()

    def replace(normalizer):
        module = SimpleNamespace(Normalizer=normalizer)
        for name in ("wetext", *map("nemo_text_processing{}".format, ("", ".text_normalization"))):
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setitem(sys.modules, "nemo_text_processing.text_normalization.normalize", module)

    yield replace
    for load in (libraries._wetext, libraries._nemo):
        load.cache_clear()


def test_a_library_is_loaded_before_it_reads_and_only_once(loaded):
    made = []

    def normalizer(lang, operator):
        made.append(lang)
        return SimpleNamespace(normalize=lambda text: text.replace("5", "five"))

    loaded(normalizer)
    read = Reading.of("en", True).steps
    assert made == ["en"]
    assert read()("5 a 5") == "five a five"
    assert made == ["en"]


def test_a_library_that_cannot_be_loaded_is_an_error(loaded):
    def broken(**_):
        raise OSError("no grammar here")

    loaded(broken)
    said = "wetext cannot be loaded for 'en' .OSError: no grammar here.*pip install 'chatterbox-opt.text.'"
    with pytest.raises(RuntimeError, match=said):
        Reading.of("en", True)


def test_a_cache_folder_that_cannot_be_written_is_an_error(loaded, tmp_path, monkeypatch):
    (tmp_path / "chatterbox_opt").write_text("a file where the folder should be")
    monkeypatch.setattr(libraries, "cache_folder", lambda: tmp_path / "chatterbox_opt")
    loaded(lambda **_: SimpleNamespace(normalize=lambda text, **_: text))
    with pytest.raises(RuntimeError, match=r"nemo cannot be loaded for 'de'.*chatterbox_opt.nemo can be written"):
        Reading.of("de", True)


def test_what_wetext_escapes_is_as_it_was(loaded):
    escaped = str.maketrans({"\\": r"\\", '"': r"\""})
    loaded(lambda **_: SimpleNamespace(normalize=lambda text: text.replace("5", "five").translate(escaped)))
    text = r'In C:\temp, "\\a" and \"b\" are 5'
    assert libraries.reader("en", "wetext")(text) == text.replace("5", "five")


@needs_wetext
def test_backslashes_stay_with_the_words_they_stand_in():
    read = Reading.of("en", "wetext").steps()
    assert read(r'C:\temp has 5 files, "say" \"5\"') == r'C:\temp has five files, "say" \"five\"'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("language", "text", "said"),
    [("en", "It cost $3.50.", "It cost three dollars fifty cents."),
     ("de", "Am 3. Januar lief er 5 km.", "Am dritter Januar lief er fünf kilometer.")],
)
def test_nemo(language, text, said, tmp_path, monkeypatch):
    pytest.importorskip("nemo_text_processing", reason="pip install nemo_text_processing")
    monkeypatch.setenv("HOME", str(tmp_path))
    level = logging.getLogger("NeMo-text-processing").level
    assert as_spoken(text, libraries.reader(language, "nemo")) == said
    logging.getLogger("NeMo-text-processing").setLevel(level)


# ---- pieces --------------------------------------------------------------------------------------

LONG = "In 1984 he paid $1,234,567.89 for 365 days of it, and in 1985 he had 27,654 of them. " * 8


def spelled(text: str) -> str:
    return re.sub(r"\d", " seven ", text)


def test_pieces_are_short_enough_as_they_are_read():
    found = pieces(LONG, 200, spelled)
    assert all(width(said) <= 200 for _, said in found)
    assert [said for _, said in found] == [spelled(piece) for piece, _ in found]
    assert "".join("".join(p for p, _ in found).split()) == "".join(LONG.split())


def test_pieces_are_cut_as_ever_where_nothing_is_done_or_nothing_grows():
    assert pieces(LONG, 200, None) == [(p, p) for p in split_text(LONG, 200)]
    assert pieces(LONG, 200, str.upper) == [(p, p.upper()) for p in split_text(LONG, 200)]
    assert pieces(LONG, None, str.upper) == [(LONG, LONG.upper())]
