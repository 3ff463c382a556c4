"""Texts in pieces: where they are cut, that nothing is lost, and how long it takes."""

import random
import re
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_opt.text.split import WIDE, _widths, breath, finished_length, spans, split_text


def length(text: str) -> int:
    return sum(_widths(text))


def check(text: str, limit: int) -> list[str]:
    pieces = split_text(text, limit)
    assert re.sub(r"\s+", "", "".join(pieces)) == re.sub(r"\s+", "", text), "a character was lost or moved"
    if length(text) > limit:
        assert all(length(p) <= limit for p in pieces), [length(p) for p in pieces]
        assert all(p == p.strip() and p for p in pieces) or not text.strip()
    return pieces


SENTENCES = {
    "abbreviations": ["Mr. and Mrs. Smith met Dr. J. R. Jones on Jan. 3 at No. 5 in Washington.",
                      "They talked, e.g. about the U.S. economy, vs. others."],
    "decimals": ["Pi is about 3.14159 and e is 2.71828 or so.", "Version 1.2.3 costs $4.50 at www.example.com today."],
    "quotes": ['"Stop!" he cried, and the car stopped at once.', '"Why?" she asked. “Because (he said) I must.”'],
    "ellipses": ["Well... maybe we should think about it… or not.", "Wait... The door is open."],
    "chinese": ["今天天气很好，我们去公园散步吧。", "“你好！”他说。", "真的吗？我不知道……"],
    "japanese": ["今日はいい天気ですね。", "「はい。そうです。」と彼は言いました。"],
    "korean": ["오늘은 날씨가 아주 좋습니다.", "산책하러 갈까요?"],
    "arabic": ["كيف حالك اليوم؟", "أنا بخير، شكرا لك."],
    "hebrew": ["מה שלומך היום?", "אני בסדר גמור, תודה רבה."],
    "hindi": ["आज मौसम बहुत अच्छा है।", "चलो घूमने चलते हैं।"],
    "greek": ["Πού είναι το βιβλίο\u037e", "Δεν ξέρω, αλλά θα το βρω."],
    "russian": ["Это ул. Ленина, т.е. центр города.", "Мы живём там с 1990 года."],
    "german": ["Er sagte: „Das ist nun wirklich gut.“", "Sie ging weiter durch den Wald.", "»Halt, wer ist da?«",
               "Niemand gab ihm darauf eine Antwort.", "›Was nun?‹", "»So komm doch her«, rief er ihr zu."],
    "french": ["Il vit « la lueur du feu. »", "Il prit alors son manteau.", "« Où vas-tu donc ? », dit-elle.",
               "«\u00a0Nulle part.\u00a0»", "«\u202fBien.\u202f» fut la réponse."],
    "footnotes": ["It lies on the River.[6]", "It was built in 1990.¹", "Nobody knows why.[a][12]", "He left it so.⁴²"],
    "invisible marks": ["זה היה יום ארוך מאוד.\u200f", "אני בסדר גמור, תודה.\u200e", "And so it went on.\u200b",
                        "Here is the end."],
    "spanish": ["¿Dónde está la Sra. García?", "¡No lo sé!"],
}


@pytest.mark.parametrize("name", SENTENCES)
def test_cuts_fall_between_sentences(name):
    """Each text consists of known sentences: every cut must be between two of them."""
    sentences = SENTENCES[name] * 12
    space = "" if name in ("chinese", "japanese") else " "
    text, seams = space.join(sentences), set()
    at = 0
    for s in sentences:
        at += len(s)
        seams.add(at)
        at += len(space)
    for limit in (120, 200, 280):
        at = 0
        for piece in check(text, limit):
            at = text.index(piece, at) + len(piece)
            inside = re.match(r"\s*(?:$|[^」”»]|»\w)", text[at:])  # never between a stop and its closing quote
            assert inside, piece
            inner = name in ("quotes", "chinese", "ellipses", "japanese")  # these sentences contain others
            assert at in seams or (inner and text[at - 1] in ".!?。！？”\"」…"), (name, limit, piece)


@pytest.mark.parametrize("name", ["german", "french", "footnotes", "invisible marks"])
def test_a_sentence_ends_behind_what_closes_it(name):
    for before, after in pairwise(SENTENCES[name]):
        assert finished_length(f"{before} {after}") == len(before) + 1, before
    assert breath("Il vit « le feu. » Puis", 19) == 0.3
    assert finished_length("pip install -e '.[serve]' && ls") == 0, "no footnote"
    assert breath("« Le feu ! » cria-t-il.", 13) == breath("»Ein Feuer!« rief er.", 13) == 0.12


def test_no_piece_begins_with_what_closes_a_quotation():
    text = "Il vit « la lueur du feu. » Puis « rien, mais rien ! », dit-il. " * 6
    for limit in range(20, 90):
        assert not any(piece.startswith("»") for piece in split_text(text, limit))
    assert finished_length("Il vit « le feu. »") == 0, "as long as more may stand behind it"


def test_numbers_in_wide_digits_are_not_cut():
    number = "利率是３．５％共有１，０００億円時間是１２：３０分"
    for piece in check(f"{number}，" * 20, 90):
        assert set(piece.split("，")) <= {*number.split("，"), ""}
    assert check("他有三，四个。" * 20, 30)[0].endswith(("，", "。")), "between words it is a comma"


def test_what_fits_is_left_alone():
    for text in ("", " ", "a", "  two  blanks\n\n ", "x. " * 90):
        assert split_text(text, 280) == [text]
    assert split_text(" " * 5000) == [""]


def test_clauses_then_words_then_letters():
    clauses = "and on it went over the hills, " * 12
    assert all(p.endswith(",") for p in check(clauses, 100))
    words = "word " * 200
    assert all(set(p.split()) == {"word"} for p in check(words, 50))
    assert [len(p) for p in check("x" * 130, 50)] == [50, 50, 30]
    assert [len(p) for p in check("字" * 100, 90)] == [30, 30, 30, 10]
    for piece in check("see - there is a pause - and here - too " * 9, 60):
        assert not piece.startswith("-")


def test_long_sentences_are_cut_only_where_needed():
    text = "Short one. " + "this part has no stop, " * 16 + "end. Another short one follows here."
    pieces = check(text, 280)
    assert len(pieces) == 2
    assert pieces[0].startswith("Short one. this")
    assert pieces[1].endswith("end. Another short one follows here.")


def test_short_pieces_join_their_neighbours():
    text = "Hi. " + "The first half of this is long enough to matter a lot, " * 5 + "but it ends. Bye."
    pieces = check(text, 280)
    assert min(len(p) for p in pieces) >= 25, pieces
    even = check("A sentence of some forty letters, more or less. " * 7, 280)
    assert max(map(len, even)) - min(map(len, even)) < 60, "pieces are evened out"


@pytest.mark.parametrize("rule", ["-" * 72, "=" * 72, "* " * 20, "—" * 30, "* * *"])
@pytest.mark.parametrize("around", ["\n", "\n\n"])
@pytest.mark.parametrize("limit", [120, 150, 280])
def test_a_rule_is_no_piece_of_its_own(rule, around, limit):
    part = "The first sentence is of a good length. Another one comes, and it has a clause. And a third. " * 3
    text = around.join([part, rule, part, rule, rule, part, rule])
    pieces = check(text, limit)
    assert all(any(map(str.isalnum, piece)) for piece in pieces), pieces
    assert spans(text, pieces)[-1][1] == len(text)


def test_a_rule_without_room_is_cut_as_ever():
    part = "word " * 18 + "end."
    for piece in check(f"{part}\n\n{'-' * 72}\n\n{part}", 100):
        assert len(set(piece)) == 1 or piece == part
    assert [len(piece) for piece in check("-" * 130, 50)] == [50, 50, 30]


def test_tags_paragraphs_and_lists():
    assert not any(p.count("[") != p.count("]") for p in check("so then [clear throat] we went on " * 20, 40))
    pieces = check(("A title\n\n" + "some text without any stop " * 3 + "\n\n") * 6, 120)
    assert all(p.startswith(("A title", "some text")) for p in pieces)
    pieces = check("".join(f"{i}. Take the next item from the box and look at it.\n" for i in range(1, 20)), 60)
    assert all(re.match(r"\d+\. Take", p) for p in pieces)


def test_marks_stay_with_their_letters():
    for unit in ("e\u0301", "👩\u200d👩\u200d👧", "👍🏽", "가\u11a8".replace("가", "\u1100\u1161")):
        for piece in check(unit * 200, 41):
            assert piece.startswith(unit[0]), (unit, piece[:4])


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_whatever_comes(seed):
    draw = random.Random(seed)
    parts = [*"abcXYZ .,!?;:-\n\t'\"()[]«»“”", "Mr. ", "3.14", "...", "。", "、", "字", "か", "한", "é", "e\u0301",
             "😀", "  ", "\n\n", "https://a.b", "\u00a0", "\u200b", "؟", "।", " - ", "word ", "word ", "word "]
    text = "".join(draw.choices(parts, k=3000))
    for limit in (20, 37, 100, 280, 1000):
        check(text, limit)


UNITS = ["» ", "« ", ".» ", "[1] ", "\u200b ", "»a« ", "１，",
         "word ", "Hello there, Mr. Smith. ", "x", " ", ".", "(", '"', "\n", "- ", "字", "a. ", "[ ", "( x", "—", "。"]


@pytest.mark.parametrize("unit", UNITS)
def test_hundred_thousand_characters_quickly(unit):
    text = (unit * (100_000 // len(unit) + 1))[:100_000]
    start = time.thread_time()
    check(text, 280)
    assert time.thread_time() - start < 5  # measured: under 1 s; a quadratic scan would take minutes


@pytest.mark.parametrize("wrong", [0, 19, -1, 1.5, True, "280"])
def test_wrong_sizes_are_refused(wrong):
    with pytest.raises(ValueError, match="max_chars"):
        split_text("text", wrong)


def test_wide_characters_count_for_the_time_they_take():
    text = "今天天气很好，我们去公园散步吧。" * 20
    assert all(len(p) * WIDE >= 150 for p in check(text, 280)[:-1])


@given(st.text(st.sampled_from("ab. ,!?\n\t—字。かé\u0301[]\"“”1"), max_size=400), st.integers(20, 120))
def test_spans_of_pieces_add_up_to_the_text(text, limit):
    pieces = split_text(text, limit)
    found = spans(text, pieces)
    assert "".join(text[a:b] for a, b in found) == text
    assert [text[a:b].strip() for a, b in found] == [p.strip() for p in pieces]


def test_a_piece_that_is_not_of_the_text_has_no_span():
    with pytest.raises(ValueError, match="does not stand"):
        spans("One. Two.", ["One.", "Three."])


def test_breath_goes_by_what_was_said_last():
    text = "A clause, a word. A sentence.\n\nA paragraph. 一句。二句，三"
    at = {name: breath(text, text.index(name)) for name in ("a word", "A sentence", "A paragraph", "word", "二", "三")}
    assert at["A paragraph"] > at["A sentence"] > at["a word"] > at["word"] == 0
    assert at["二"] == at["A sentence"]
    assert at["三"] == at["a word"]


def test_no_breath_within_a_word_and_none_for_what_stands_before_the_next():
    assert breath("x" * 300, 280) == breath("字" * 90, 80) == 0
    text = "Hello there. [lang fr] Bonjour."
    assert breath(text, text.index("["), text.index("B")) == breath("Hello there. Bonjour.", 13) == 0.3
    text = "Hello there, [lang fr] Bonjour."
    assert breath(text, text.index("["), text.index("B")) == 0.12
