"""The 23 languages, and the preparation of text that five of them need before it is tokenized.

Each preparation uses an optional package, imported on first use and built once for all threads. If it is missing or
fails, the text stays unchanged, after one warning that says what to install.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unicodedata import category, normalize

logger = logging.getLogger(__name__)

SUPPORTED_LANGUAGES = {
    "ar": "Arabic", "da": "Danish", "de": "German", "el": "Greek", "en": "English", "es": "Spanish", "fi": "Finnish",
    "fr": "French", "he": "Hebrew", "hi": "Hindi", "it": "Italian", "ja": "Japanese", "ko": "Korean", "ms": "Malay",
    "nl": "Dutch", "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ru": "Russian", "sv": "Swedish",
    "sw": "Swahili", "tr": "Turkish", "zh": "Chinese",
}


class Helper:
    """An optional package: `run(fn, default)` returns `fn(tool)`, or `default` if there is no tool.

    One thread at a time, as none of these packages claims to be thread-safe.
    """

    def __init__(self, build: Callable[[], Any], package: str, effect: str) -> None:
        self._build, self._package, self._effect = build, package, effect
        self._lock = threading.Lock()
        self._tool: Any = None
        self._gone = self._warned = False

    def run(self, fn: Callable[[Any], Any], default: Any) -> Any:
        with self._lock:
            try:
                if self._tool is None and not self._gone:
                    self._tool = self._build()
                return default if self._gone else fn(self._tool)
            except ImportError:
                self._failed("is not installed: pip install " + self._package)
            except Exception as error:  # a failing helper must not fail the request
                self._failed(f"failed ({type(error).__name__}: {error})")
            return default

    def _failed(self, what: str) -> None:
        self._gone = self._tool is None  # what cannot be built is not tried again for every text
        log = logger.debug if self._warned else logger.warning
        log("%s %s; %s", self._package, what, self._effect)
        self._warned = True


def _build_kakasi() -> Any:
    import pykakasi

    return pykakasi.kakasi()


def _build_segmenter() -> Any:
    from spacy_pkuseg import pkuseg

    return pkuseg()  # downloads its model the first time


def _build_dicta() -> Any:
    from dicta_onnx import Dicta

    return Dicta()


def _build_stresser() -> Any:
    from russian_text_stresser.text_stresser import RussianTextStresser

    return RussianTextStresser()


HELPERS = {
    "ja": Helper(_build_kakasi, "pykakasi", "Japanese kanji are not turned into hiragana, so they are mispronounced"),
    "zh": Helper(_build_segmenter, "spacy-pkuseg", "Chinese is spoken without word boundaries"),
    "he": Helper(_build_dicta, "dicta-onnx", "Hebrew is spoken without vowel marks"),
    "ru": Helper(_build_stresser, "russian-text-stresser", "Russian is spoken without stress marks"),
}


def prepare(text: str, language_id: str | None, cangjie: Cangjie | None = None) -> str:
    """Takes lower-cased, decomposed text; returns the form that the language's tokenizer was trained on."""
    if language_id == "zh":
        return chinese(text, cangjie)
    step = _STEPS.get(language_id or "")
    return step(text) if step else text


def japanese(text: str) -> str:
    return HELPERS["ja"].run(lambda kakasi: normalize("NFKD", "".join(map(_hiragana, kakasi.convert(text)))), text)


def _hiragana(word: dict[str, str]) -> str:
    """Returns a word with kanji spelt in hiragana; kana and everything else stay."""
    if not any("一" <= c <= "\u9fff" for c in word["orig"]):
        return word["orig"]
    reading = word["hira"]
    # A leading は or へ would be taken for the particle, which is pronounced differently.
    return " " + reading if reading.startswith(("は", "へ")) else reading


def korean(text: str) -> str:
    return "".join(map(_jamo, text)).strip()


def _jamo(char: str) -> str:
    """Returns a Hangul syllable as its two or three letters. Text in NFKD has no syllables left."""
    if not "\uac00" <= char <= "\ud7af":
        return char
    index = ord(char) - 0xAC00  # (initial * 21 + vowel) * 28 + final
    initial, vowel, final = index // 588, index % 588 // 28, index % 28
    return chr(0x1100 + initial) + chr(0x1161 + vowel) + (chr(0x11A7 + final) if final else "")


def hebrew(text: str) -> str:
    return HELPERS["he"].run(lambda dicta: dicta.add_diacritics(text), text)


def russian(text: str) -> str:
    return HELPERS["ru"].run(lambda stresser: stresser.stress_text(text), text)


_STEPS: dict[str, Callable[[str], str]] = {"ja": japanese, "ko": korean, "he": hebrew, "ru": russian}


def chinese(text: str, cangjie: Cangjie | None) -> str:
    """Separates words and spells each character by its Cangjie keys."""
    text = HELPERS["zh"].run(lambda segmenter: " ".join(segmenter.cut(text)), text)
    if cangjie is None:
        return text
    return "".join(cangjie.spell(c) if category(c) == "Lo" else c for c in text)


class Cangjie:
    """The Cangjie input-method table of a checkpoint folder: lines of `character<TAB>code`. Read on first use."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._codes: dict[str, str] | None = None

    def spell(self, char: str) -> str:
        """Returns `[cj_a][cj_b][cj_.]`, or the character itself if the table lacks it."""
        code = self.codes().get(char)
        return char if code is None else "".join(f"[cj_{key}]" for key in code) + "[cj_.]"

    def codes(self) -> dict[str, str]:
        with self._lock:
            if self._codes is None:
                self._codes = self._read()
            return self._codes

    def _read(self) -> dict[str, str]:
        try:
            return _numbered(entry.split("\t")[:2] for entry in json.loads(self.path.read_text(encoding="utf-8")))
        except (OSError, ValueError, AttributeError, TypeError) as error:  # missing, or not a table
            logger.warning("no Cangjie table (%s): Chinese characters are not spelt out, so they are not spoken", error)
            return {}


def _numbered(entries: Any) -> dict[str, str]:
    """Returns character -> code. Characters that share a code get their rank appended, except the first."""
    shared: dict[str, int] = {}
    rank: dict[tuple[str, str], int] = {}
    code_of: dict[str, str] = {}
    for char, code in entries:
        rank.setdefault((char, code), shared.get(code, 0))
        shared[code] = shared.get(code, 0) + 1
        code_of[char] = code  # a character listed twice keeps its last code
    return {char: code + (str(rank[char, code]) if rank[char, code] else "") for char, code in code_of.items()}
