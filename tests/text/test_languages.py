"""The optional helpers: missing, failing, replaced, from many threads."""

import json
import logging
import sys
import time
from types import ModuleType, SimpleNamespace

import pytest
from threads import in_threads

from chatterbox_opt.text import languages
from chatterbox_opt.text.languages import Cangjie, Helper, prepare

PACKAGES = {"ja": "pykakasi", "zh": "spacy_pkuseg", "he": "dicta_onnx", "ru": "russian_text_stresser"}
TEXTS = {"ja": "今日は東京へ。", "zh": "今天天气很好", "he": "שלום עולם", "ru": "привет мир"}


class Kakasi:
    """Reads every kanji as は, and leaves everything else."""

    def convert(self, text):
        return [{"orig": c, "hira": "は" if "一" <= c <= "\u9fff" else c} for c in text]


STAND_INS = {
    "ja": {"pykakasi": SimpleNamespace(kakasi=Kakasi)},
    "zh": {"spacy_pkuseg": SimpleNamespace(pkuseg=lambda: SimpleNamespace(cut=lambda t: [t[:2], t[2:]]))},
    "he": {"dicta_onnx": SimpleNamespace(Dicta=lambda: SimpleNamespace(add_diacritics=lambda t: t + "\u05b8"))},
    "ru": {
        "russian_text_stresser": ModuleType("russian_text_stresser"),
        "russian_text_stresser.text_stresser": SimpleNamespace(
            RussianTextStresser=lambda: SimpleNamespace(stress_text=lambda t: t.replace("и", "и\u0301"))
        ),
    },
}


@pytest.fixture
def fresh(monkeypatch):
    """Helpers before their first use."""
    renewed = {k: Helper(h._build, h._package, h._effect) for k, h in languages.HELPERS.items()}
    monkeypatch.setattr(languages, "HELPERS", renewed)
    return monkeypatch


@pytest.mark.parametrize("language", PACKAGES)
def test_a_missing_package_is_named_once_and_the_text_goes_on(fresh, caplog, language):
    fresh.setitem(sys.modules, PACKAGES[language], None)  # what makes an import fail
    with caplog.at_level(logging.WARNING):
        assert prepare(TEXTS[language], language) == TEXTS[language]
        assert prepare(TEXTS[language], language) == TEXTS[language]
    assert len(caplog.records) == 1
    assert f"pip install {PACKAGES[language].replace('_', '-')}" in caplog.text


@pytest.mark.parametrize("language", PACKAGES)
@pytest.mark.parametrize("where", ["build", "call"])
def test_a_failing_package_is_no_reason_to_fail(fresh, caplog, language, where):
    def fail(*_):
        raise RuntimeError("no model here")

    tool = SimpleNamespace(convert=fail, cut=fail, add_diacritics=fail, stress_text=fail)
    build = fail if where == "build" else lambda: tool
    fresh.setitem(languages.HELPERS, language, Helper(build, "thing", "it is skipped"))
    with caplog.at_level(logging.WARNING):
        assert prepare(TEXTS[language], language) == TEXTS[language]
        assert prepare(TEXTS[language], language) == TEXTS[language]
    assert "no model here" in caplog.text
    assert len(caplog.records) == 1


def test_what_was_interrupted_is_built_the_next_time(fresh, caplog):
    interrupts = [KeyboardInterrupt()]

    def build():
        if interrupts:
            raise interrupts.pop()
        return SimpleNamespace(stress_text=str.upper)

    fresh.setitem(languages.HELPERS, "ru", Helper(build, "thing", "it is skipped"))
    with pytest.raises(KeyboardInterrupt):
        prepare(TEXTS["ru"], "ru")
    assert prepare(TEXTS["ru"], "ru") == TEXTS["ru"].upper()
    assert not caplog.records


@pytest.mark.parametrize("language", PACKAGES)
def test_with_the_packages_as_upstream_does(fresh, upstream, tmp_path, language):
    from chatterbox.models.tokenizers import tokenizer as theirs

    for name, module in STAND_INS[language].items():
        fresh.setitem(sys.modules, name, module)
    for name in ("_kakasi", "_dicta", "_russian_stresser"):
        fresh.setattr(theirs, name, None)
    table = tmp_path / "Cangjie5_TC.json"
    table.write_text(json.dumps(["今\ta", "天\tb", "气\ta", "很\ta"]))
    fresh.setattr(theirs, "hf_hub_download", lambda **_: str(table))
    steps = {
        "ja": theirs.hiragana_normalize, "zh": theirs.ChineseCangjieConverter(), "he": theirs.add_hebrew_diacritics,
        "ru": theirs.add_russian_stress,
    }
    for text in (TEXTS[language], "", "abc", " 東 京 ", "か゛カ", "人人", "は人へ", "今天气很か"):
        got = prepare(text, language, Cangjie(table))
        assert got == steps[language](text), repr(text)
    assert prepare(TEXTS[language], language, Cangjie(table)) != TEXTS[language]


@pytest.mark.parametrize("text", ["", " 값이 ", "a각b", "\ud7a3\ud7a4\ud7af", "\u1100\u1161", "가나다"])
def test_korean_letters(upstream, text):
    from chatterbox.models.tokenizers.tokenizer import korean_normalize

    assert prepare(text, "ko") == korean_normalize(text)


def test_other_languages_are_left_alone():
    for language in ("fr", "en", None, "", "xx"):
        assert prepare(" Text 값 中 ", language) == " Text 값 中 "


def test_cangjie_codes_shared_and_listed_twice(upstream, tmp_path, monkeypatch):
    from chatterbox.models.tokenizers import tokenizer as theirs

    table = tmp_path / "table.json"
    rows = ["甲\tab", "乙\tab", "丙\tab", "甲\tcd", "丁\tcd", "丁\tcd", "戊\tef\textra", "乙\tab"]
    table.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    monkeypatch.setattr(theirs, "hf_hub_download", lambda **_: str(table))
    wanted, ours = theirs.ChineseCangjieConverter(), Cangjie(table)
    for char in "甲乙丙丁戊己":
        assert ours.codes().get(char) == wanted._cangjie_encode(char)
    assert ours.spell("乙") == "[cj_a][cj_b][cj_1][cj_.]"
    assert ours.spell("己") == "己"


@pytest.mark.parametrize("content", [None, "{", "[1, 2]"])
def test_a_missing_or_broken_table_is_a_warning(fresh, tmp_path, caplog, content):
    table = tmp_path / "table.json"
    if content is not None:
        table.write_text(content)
    cangjie = Cangjie(table)
    with caplog.at_level(logging.WARNING):
        assert prepare("今天", "zh", cangjie).replace(" ", "") == "今天"
        assert prepare("今天", "zh", cangjie).replace(" ", "") == "今天"
    assert sum("Cangjie" in r.message for r in caplog.records) == 1


def test_built_once_and_asked_by_one_thread_at_a_time():
    built, inside, overlaps = [], [], []

    def build():
        built.append(1)
        time.sleep(0.02)
        return "tool"

    def use(tool):
        overlaps.append(len(inside))
        inside.append(1)
        time.sleep(0.001)
        inside.pop()
        return tool

    helper = Helper(build, "thing", "nothing")
    results = in_threads(*[lambda: helper.run(use, None)] * 8)
    assert (len(built), results, max(overlaps)) == (1, ["tool"] * 8, 0)


def test_the_real_helpers_where_installed():
    pytest.importorskip("pykakasi", reason="pykakasi is not installed")
    assert prepare("日本語は難しい", "ja") == "にほんごはむす\u3099かしい"
