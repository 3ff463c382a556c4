"""The one-pass rules of whole words against the library, which tries one rule after the other."""

import random
import time

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers

from chatterbox_opt.text.tokenizer import SPACE, EnTokenizer
from chatterbox_opt.text.word_rules import FEW, RUN, WordRules
from chatterbox_opt.weights.files import MINI

ENDS = ("", ",", ".", "!?", "'", "-", "\n", "_")
SAID = {"don't": "Č", "don": "Ę", "o'clock": "Đ", "clock's": "ē", "clock": "Ġ", "'tis": "Ĕ", "s": "ğ", "t": "Ħ"}


@pytest.fixture(scope="module")
def mini():
    return EnTokenizer(MINI / "tokenizer.json")


def with_rules(*rules) -> Tokenizer:
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(SPACE + "abcdefghij")}, [], unk_token="["))
    made.normalizer = normalizers.Sequence(list(rules))
    return made


def word_rules(count: int = FEW) -> list:
    words = dict(list(SAID.items())[:count]) | {f"{'abcdefghij'[i % 10]}{'x' * (i // 10)}": "Č" for i in range(count)}
    return [normalizers.Replace(Regex(rf"\b{word}\b"), said) for word, said in words.items()]


def test_the_small_voices_words(mini):
    """All forms that words have in texts, and some that they have in none: 6 words each, in a fixed random order."""
    rng, known = random.Random(0), list(mini.words.said)
    short = [word for word in known if "'" in word]
    kinds = [
        lambda: rng.choice(known), lambda: rng.choice(known).upper(), lambda: rng.choice(known).title(),
        lambda: rng.choice(short), lambda: f"x{rng.choice(short)}", lambda: f"{rng.choice(short)}'{rng.choice(known)}",
        lambda: f"{rng.choice(known)}'s", lambda: f"{rng.choice(known)}{rng.randint(0, 99)}", lambda: "xqzj",
    ]  # fmt: skip
    by_rules = 0
    for _ in range(60):
        text = " ".join(rng.choice(kinds)() + rng.choice(ENDS) for _ in range(6))
        wanted = mini.tokenizer.encode(text.replace(" ", SPACE)).ids
        assert mini.encode(text) == wanted, text
        by_rules += mini.words.ids(text, SPACE) is not None
    assert by_rules > 30


def test_rules_that_overlap_are_applied_in_their_order():
    library = with_rules(normalizers.Lowercase(), *word_rules())
    rules = WordRules.of(library)
    for text in ("don't", "don't's", "o'clock's", "clock's'o", "DON'T t", "s't's", "a'b'c", "''s'", "don' t"):
        assert RUN.sub(rules._said, text.lower()) == library.normalizer.normalize_str(text), text


def test_a_run_of_apostrophes_takes_no_longer_than_words(mini):
    text = "a'" * 2500
    start = time.thread_time()
    assert mini.words.ids(text, SPACE) is not None
    assert time.thread_time() - start < 2  # measured: 10 ms; all spans of its parts would take 9 s and 1.4 GB
    short = "don't'" * 30
    assert mini.encode(short) == mini.tokenizer.encode(short.replace(" ", SPACE)).ids


@pytest.mark.parametrize("text", ["caf\u00e9 hours", "Hello. [laughter] there", "it'tis so"])
def test_other_texts_are_left_to_the_library(mini, text):
    assert mini.words.ids(text, SPACE) is None
    assert mini.encode(text) == mini.tokenizer.encode(text.replace(" ", SPACE)).ids


def test_vocabularies_without_such_rules_are_left_to_the_library():
    lower, rules = normalizers.Lowercase(), word_rules()
    assert WordRules.of(with_rules(lower, *rules)) is not None
    assert WordRules.of(with_rules(*rules)) is None
    assert WordRules.of(with_rules(lower, *rules[: FEW // 2])) is None
    assert WordRules.of(with_rules(lower, normalizers.Replace(Regex("a+"), "b"), *rules)) is None
    assert WordRules.of(Tokenizer(models.BPE({}, []))) is None
