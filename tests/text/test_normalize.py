"""Punctuation, normalised as upstream normalises it."""

import importlib
import random

import pytest

from chatterbox_opt.text.normalize import EMPTY_TEXT, punc_norm

ODD = [
    "", " ", "\n\t \u3000", "a", "A", "ß", "ŉ", "ǆ", ".", ",", "...", "…", " ...", "…….", "x...y…z", "a - b - c",
    "a -b- c", " - ", "- ", "-", "—", "–a–", "a — b", "a;b;c;", "a ; b", "a : b:", "a ,b , c", "“q” ‘r’", "it’s", "“",
    "He said:", "wait;", "wait—", "no end", "end!", "end?", "end.", "end,", "end-", "end:", "end…", "end 。",
    "终。", "终，", "终、", "终？", "终！", "終」",
    "hello\u00a0world\u2003x", "a\x00b\x07c", "tab\tnew\nline\r\nend", "  lead and trail  ", "multi   space",
    "emoji 😀👩‍👩‍👧 🇩🇪",
    "e\u0301clair", "ÉCLAIR", "éclair", "İstanbul", "ıSPARTA", "нет", "مرحبا؟", "שלום", "नमस्ते।", "γεια;", "12:30",
    "a....b",
    "a . . . b", " ,,, ", "\u200bzero", "\ufeffbom", "1,000.5", "a-,b", "x" * 5000, "\x1c\x1d\x1e\x1f\x85", "…...…",
    ": : :", ";;;;",
    "\ud7a3", "[laugh] ha", "[SPACE][STOP]", "<b>hi</b>", "it's 5 o‘clock", "„unten“", "«guillemets»",
    "a\u2028b\u2029c",
]
MODULES = {
    "tts": "chatterbox.tts", "mtl": "chatterbox.mtl_tts",
    "turbo": "chatterbox.tts_turbo", "nano": "chatterbox.tts_turbo",
}


def mixtures(n: int = 3000) -> list[str]:
    draw = random.Random(0)
    pieces = [*"aB .!?,;:-—–…“”‘’\n。，、", "...", " - ", " ,", "  ", "é", "ß", "中"]
    return ["".join(draw.choices(pieces, k=draw.randint(1, 12))) for _ in range(n)]


@pytest.mark.parametrize("family", MODULES)
def test_equal_to_upstream(upstream, family):
    theirs = importlib.import_module(MODULES[family]).punc_norm
    for text in ODD + mixtures():
        assert punc_norm(text, family) == theirs(text), repr(text)


@pytest.mark.parametrize(
    ("family", "text", "wanted"),
    [
        ("tts", "", EMPTY_TEXT),
        ("tts", "   ", "."),
        ("tts", "hi there", "Hi there."),
        ("tts", "wait... what; now: yes - no", "Wait,  what,  now, yes, no."),
        ("turbo", "wait... what; now: yes - no", "Wait... what; now, yes - no."),
        ("tts", "你好。", "你好。."),
        ("mtl", "你好。", "你好。"),
    ],
)
def test_known_results(family, text, wanted):
    assert punc_norm(text, family) == wanted
