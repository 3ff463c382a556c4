"""Respellings: which words they match, what replaces these, and what a file of them may contain."""

from __future__ import annotations

import json
import random
import re
import time
from unicodedata import category

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_opt.text.pronounce import Pronunciations
from chatterbox_opt.text.reading import Reading
from chatterbox_opt.text.split import WIDE_CHAR

TOML = """
[words]
nginx = "engine x"
SQL = "sequel"
"New York" = "Noo York"

[patterns]
'v(\\d+)' = 'version \\1'

[voice.anna.words]
SQL = "ess queue ell"
"""


@pytest.mark.parametrize(
    ("words", "text", "said"),
    [
        ({"nginx": "engine x"}, "Nginx, nginx and NGINX.", "Engine x, engine x and Engine x."),
        ({"SQL": "sequel"}, "SQL, sql and Sql.", "sequel, sql and Sql."),
        ({"cat": "kat"}, "The cat's concatenated cat.", "The kat's concatenated kat."),
        ({"Dr.": "doctor"}, "Dr. No", "doctor No"),
        ({"C++": "see plus plus"}, "C++ and C.", "see plus plus and C."),
        ({"york": "yawk", "new york": "noo york"}, "New York and York", "Noo york and Yawk"),
        ({"a": "b", "b": "c"}, "a b", "b c"),  # not searched for in another respelling
        ({"行": "航"}, "银行里", "银航里"),
        ({"AI": "人工智能"}, "用AI写", "用人工智能写"),
        ({"(": "open"}, "a ( b", "a open b"),
        # letters that count as one in any case, though str.lower() keeps them apart
        ({"istanbul": "iss tan bool"}, "İstanbul is big.", "Iss tan bool is big."),
        ({"\u00b5m": "micrometers"}, "5 \u03bcm thick", "5 micrometers thick"),
        ({"sin": "sine", "θ": "theta"}, "sın ϑ", "sine theta"),
        # a combining mark goes on with the word
        ({"कम": "X"}, "कम कमी", "X कमी"),
        ({"कमी": "X"}, "कमी कमीज", "X कमीज"),
        ({"cafe": "X"}, "cafe cafe\u0301", "X cafe\u0301"),
        ({"cat": "X"}, "e\u0301cat ❤\ufe0fcat", "e\u0301cat ❤\ufe0fX"),
        ({"\u0301": ""}, "го\u0301род", "город"),
        # as editors and line breaks change it
        ({"O'Brien": "oh bryan"}, "O’Brien, O'Brien", "oh bryan, oh bryan"),
        ({"it’s": "its"}, "It's, it’s", "Its, its"),
        ({"New York": "N"}, "New\r\nYork, New  York, New\u00a0York, NewYork", "N, N, N, NewYork"),
        ({"a b": "long", "a": "short"}, "a \n b\u0301, a  b", "short \n b\u0301, long"),
    ],
)
def test_words(words, text, said):
    assert Pronunciations.of(words)(text) == said


def test_patterns_go_last_one_after_another():
    made = Pronunciations.of({"one": "two", re.compile("two"): "three", re.compile(r"(\w)hree"): r"\1hre"})
    assert made("one two") == "thre thre"


def test_a_file_for_every_voice_and_for_one(tmp_path):
    (tmp_path / "say.toml").write_text(TOML, encoding="utf-8")
    everybody = Pronunciations.of(tmp_path / "say.toml")
    text = "SQL on nginx v2 in New York"
    assert everybody(text) == everybody.for_voice("bob")(text) == "sequel on engine x version 2 in Noo York"
    assert everybody.for_voice("anna")(text) == "ess queue ell on engine x version 2 in Noo York"


def test_json_says_the_same(tmp_path):
    tables = {"words": {"SQL": "sequel"}, "patterns": {r"v(\d+)": r"version \1"}}
    (tmp_path / "say.json").write_text(json.dumps(tables), encoding="utf-8")
    assert Pronunciations.load(str(tmp_path / "say.json"))("SQL v2") == "sequel version 2"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", '{"word": {"a": "b"}}', "words, patterns, voice are known; found: word"),
        ("a.json", '{"a": "b"}', "words, patterns, voice are known"),
        ("a.json", "[]", "found: nothing"),
        ("a.json", "{", "a.json"),
        ("a.toml", "a = = b", "a.toml"),
        ("a.json", '{"words": {"a": 3}}', "text is needed on both sides"),
        ("a.json", '{"words": {" ": "b"}}', "text is needed on both sides"),
        ("a.json", '{"patterns": {"(": "b"}}', "no regular expression"),
        ("a.json", '{"patterns": {"a": "\\\\1"}}', "does not fit"),
        ("a.json", '{"voice": {"anna": {"voice": {}}}}', "words, patterns are known"),
        ("a.txt", "a = b", ".toml and .json"),
    ],
)
def test_errors_name_the_file_and_what_is_wrong(name, content, said, tmp_path):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        Pronunciations.load(tmp_path / name)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["a.toml", "a.json"])
def test_a_file_in_another_encoding_is_told(name, tmp_path):
    (tmp_path / name).write_bytes('[words]\n"caf\u00e9" = "b"\n'.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{name}: it is not UTF-8 .*; save it as UTF-8$"):
        Pronunciations.load(tmp_path / name)


def test_a_missing_file_and_another_type():
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Pronunciations.of("nowhere.toml")
    with pytest.raises(ValueError, match="pronounce is int"):
        Pronunciations.of(3)


@given(st.dictionaries(st.text(min_size=1).filter(str.strip), st.text(), max_size=4), st.text())
def test_any_words_are_taken(words, text):
    said = Pronunciations.of(words)(text)
    if not any(re.search(re.escape(word), text, re.I) for word in words):
        assert said == text


def goes_on(text: str, at: int) -> bool:
    """Whether a word goes on from text[at - 1] to text[at]."""

    def letter(char: str) -> bool:
        marks = category(char)[0] == "M" and char != "\ufe0f"  # which makes an emoji of a sign
        return (char.isalnum() or char == "_" or marks) and not WIDE_CHAR.match(char)

    return 0 < at < len(text) and letter(text[at - 1]) and letter(text[at])


def replaced(words: dict[str, str], text: str) -> str:
    """Does what Pronunciations does for words, one place and one word after another."""
    made, at = "", 0
    while at < len(text):
        for word in sorted(words, key=len, reverse=True):
            found = re.compile(re.escape(word), re.I if word == word.lower() else 0).match(text, at)
            if found and not goes_on(text, at) and not goes_on(text, found.end()):
                to = words[word][:1].upper() + words[word][1:] if found[0][0].isupper() else words[word]
                made, at = made + words.get(found[0], to), found.end()
                break
        else:
            made, at = made + text[at], at + 1
    return made


@pytest.mark.parametrize("seed", range(5))
def test_words_are_found_as_if_each_were_searched_for_alone(seed):
    draw = random.Random(seed)
    letters = [*"aAbBiIsSkK", "ı", "İ", "ſ", "\u212a", "é", "e\u0301", "θ", "ϑ", "क", "मी", "_", "1", "字", "か", "한"]
    both = [*letters * 3, *" .+(&", "❤\ufe0f"]
    for _ in range(30):
        words = {"".join(draw.choices(both, k=draw.randint(1, 3))): f"<{i}>" for i in range(12)}
        words = {word: to for word, to in words.items() if word.strip() and " " not in word}
        text = "".join(draw.choices([*both, *words], k=60))
        assert Pronunciations(words)(text) == replaced(words, text), (words, text)


def test_thousands_of_words_are_ready_at_once():
    draw = random.Random(0)
    words = {"".join(draw.choices("abcdefghijklmA", k=8)): "said" for _ in range(2000)}
    start = time.thread_time()
    made = Pronunciations(words)
    assert time.thread_time() - start < 5  # measured: 0.1 s; with bounds of its own for each word 12 s
    assert made(f"x {next(iter(words))} y") == "x said y"


def test_respellings_go_ahead_of_numbers():
    pytest.importorskip("wetext", reason="pip install 'chatterbox-opt[text]'")
    read = Reading.of("en", True, {"R2D2": "Artoo 5"}).steps()
    assert read("R2D2 has 3 legs.") == "Artoo five has three legs."


def test_what_can_concern_a_text():
    words = Pronunciations({"cat": "kat", "SQL": "sequel", "New York": "Noo York"}, {r"v(\d)": r"version \1"})
    patterns = [[r"v(\d)", 32, r"version \1"]]
    assert words.concerning("The Cat sat.") == [{"cat": "kat"}, patterns]
    assert words.concerning("Concatenate.") == [{"cat": "kat"}, patterns], "a part of it may begin there"
    assert words.concerning("sql in new york") == [{}, patterns]
    assert words.concerning("New\nYork") == [{"New York": "Noo York"}, patterns]


def test_one_voices_respellings_lead_to_anothers():
    anna, ben = Pronunciations({"a": "anna's"}), Pronunciations({"b": "ben's"})
    every = Pronunciations({"c": "all's"}, voices={"anna": anna, "ben": ben})
    assert every.for_voice("anna").for_voice("ben")("a b c") == "a ben's all's"
    assert every.for_voice("anna").for_voice("carl")("a b c") == "anna's b all's"


def test_a_voice_with_two_names():
    anna = Pronunciations({"cat": "kat", "Owl": "oul"}, {"x": "anna's"})
    low = Pronunciations({"Cat": "cad", "dog": "dawg"}, {"x|y": "low's"})
    every = Pronunciations({"owl": "aul", "DOG": "dee oh gee"}, {"x|y|z": "all's"}, {"anna": anna, "low": low})
    both = every.for_voice("anna", "low")
    assert both("Cat, dog, DOG, Owl, owl: x y z") == "Kat, dawg, Dawg, oul, aul: anna's low's all's"
    assert every.for_voice("low", "anna")("Cat, cat: x") == "cad, kat: low's"
    assert every.for_voice("carl", "low", None)("cat, dog") == "cat, dawg"
    assert both.for_voice("anna")("cat, dog") == "kat, dog"


def test_a_recordings_name_does_not_replace_names_that_were_given():
    voices = {"anna": Pronunciations({"cat": "kat"}), "low": Pronunciations({"dog": "dawg"})}
    every = Pronunciations(voices=voices)
    text = "cat, dog"
    assert Reading.of("en", pronounce=every, voice="low").steps()(text) == "cat, dawg"
    read = Reading.of("en", pronounce=every.for_voice("anna", "low"), voice="low").steps
    assert read()(text) == "kat, dawg"
    assert read(voice="low")(text) == "cat, dawg", "a mark's voice is another"


def test_a_marks_voice_without_a_table_has_not_the_speakers():
    every = Pronunciations({"SQL": "sequel"}, voices={"Anna": Pronunciations({"SQL": "ess queue ell"})})
    read = Reading.of("en", pronounce=every.for_voice("Anna"), named={"Ben": None, "Anna": None}).steps
    assert read()("SQL") == read(voice="Anna")("SQL") == "ess queue ell"
    assert read(voice="Ben")("SQL") == "sequel"
    assert every.for_voice("Anna").every is every.every is every


def test_a_marks_name_takes_the_tables_of_its_recording_too():
    anna, low = Pronunciations({"cat": "kat", "owl": "aul"}), Pronunciations({"dog": "dawg", "owl": "oul"})
    every = Pronunciations(voices={"Anna": anna, "low": low})
    read = Reading.of("en", pronounce=every, voice="high.wav", named={"Anna": "voices/low.wav", "Ben": None}).steps
    assert read(voice="Anna")("cat, dog, owl") == "kat, dawg, aul"
    assert read(voice="Ben")("cat, dog") == "cat, dog"
    assert read()("cat, dog") == "cat, dog"


def test_a_voices_entry_in_lower_case_precedes_a_general_one_with_capitals():
    every = Pronunciations({"SQL": "sequel", "SQL server": "sequel server"}, voices={
        "anna": Pronunciations({"sql": "ess queue ell"})
    })
    assert every.for_voice("anna")("SQL, sql, SQL server") == "Ess queue ell, ess queue ell, sequel server"
    assert every("SQL sql") == "sequel sql"
