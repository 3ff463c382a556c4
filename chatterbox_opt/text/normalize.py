"""Normalizes punctuation to what each family's checkpoint was trained on, equal to upstream to the byte."""

from __future__ import annotations

EMPTY_TEXT = "You need to add some text for me to talk."

# Applied in order, each to the result of those before.
_TYPOGRAPHIC = [
    ("—", "-"),
    ("–", "-"),
    (" ,", ","),
    ("“", '"'),
    ("”", '"'),
    ("‘", "'"),
    ("’", "'"),
]
_FULL = [("...", ", "), ("…", ", "), (":", ","), (" - ", ", "), (";", ", "), *_TYPOGRAPHIC]
# Turbo was trained with three dots, spaced hyphens and semicolons left alone.
_TURBO = [("…", ", "), (":", ","), *_TYPOGRAPHIC]

_LATIN_ENDS = (".", "!", "?", "-", ",")
_ALL_ENDS = (*_LATIN_ENDS, "、", "，", "。", "？", "！")


def punc_norm(text: str, family: str = "tts") -> str:
    """Returns the text normalized for `family` ("tts", "mtl", "turbo", "nano"); never empty."""
    if not text:
        return EMPTY_TEXT
    if text[0].islower():
        text = text[0].upper() + text[1:]
    text = " ".join(text.split())
    for old, new in _TURBO if family in ("turbo", "nano") else _FULL:
        text = text.replace(old, new)
    text = text.rstrip(" ")
    return text if text.endswith(_ALL_ENDS if family == "mtl" else _LATIN_ENDS) else text + "."
