"""Vocabularies for random checkpoints: the published sizes and special tokens, merges made up from the alphabet."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Whitespace

from ..config import START_TEXT

LANGUAGE_TAGS = (
    "ar", "da", "de", "el", "en", "es", "fi", "fr", "he", "hi", "it", "ja", "ko", "ms", "nl", "no", "pl", "pt", "ru",
    "sv",
    "sw", "tr", "zh",
)
_BY_FREQUENCY = "etaoinshrdlcumwfgypbvkjxqz"
_COMMON = ("[STOP]", "[UNK]", "[SPACE]")  # ids 0, 1, 2; [START] is 255
_EVENTS = ("[UH]", "[UM]", "[giggle]", "[laughter]", "[guffaw]", "[inhale]", "[exhale]", "[sigh]", "[cry]", "[bark]",
           "[howl]", "[meow]", "[singing]", "[music]", "[whistle]", "[humming]", "[gasp]", "[groan]", "[whisper]")
_TAGS = ("chuckle", "laugh", "cough", "clear throat", "sigh", "shush", "groan", "sniff", "gasp", "whispering", "crying",
         "happy", "sarcastic", "surprised", "angry", "fear", "dramatic", "narration", "advertisement")


def write_english(path: Path, size: int) -> None:
    latin = [chr(c) for c in range(0x21, 0x7F)] + [chr(c) for c in range(0xA1, 0x17F)]
    _write_graphemes(path, size, _EVENTS, latin)


def write_multilingual(path: Path, size: int, languages: tuple[str, ...]) -> None:
    special = [f"[{code}]" for code in languages]
    special += [f"[cj_{key}]" for key in (*"abcdefghijklmnopqrstuvwxyz0123456789", ".")]
    spans = [(0x21, 0x7F), (0xA1, 0x250), (0x300, 0x345), (0x386, 0x3CF), (0x400, 0x460), (0x5B0, 0x5F0), (0x600,
        0x660),
             (0x900, 0x970), (0x1100, 0x1113), (0x1161, 0x1176), (0x11A8, 0x11C3), (0x2010, 0x2027), (0x3001, 0x3019),
             (0x3041, 0x30FF)]
    _write_graphemes(path, size, special, [chr(c) for a, b in spans for c in range(a, b)])


def _write_graphemes(path: Path, size: int, special: tuple[str, ...] | list[str], letters: list[str]) -> None:
    merges = _merges(_BY_FREQUENCY, "")
    plain = iter(letters)
    pairs: list[tuple[str, str]] = []
    vocab: dict[str, int] = {token: i for i, token in enumerate([*_COMMON, *special])}
    for i in range(len(vocab), size):
        if i == START_TEXT:
            vocab["[START]"] = i
        elif (letter := next(plain, None)) is not None:
            vocab[letter] = i
        else:
            pair = next(merges)
            pairs.append(pair)
            vocab["".join(pair)] = i
    if len(vocab) != size or "[START]" not in vocab:
        raise ValueError(f"a vocabulary of {size} entries cannot hold the {len(letters)} letters it needs")
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=pairs, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens([*_COMMON, "[START]", *special])
    tokenizer.save(str(path))


def write_cangjie(path: Path) -> None:
    """Writes a made-up table in the real format: `character<TAB>code`, some codes shared by a few characters."""
    rows = []
    for c in range(0x4E00, 0x9FA6):
        mixed = zlib.crc32(chr(c).encode())
        rows.append(f"{chr(c)}\t" + "".join(chr(97 + mixed // 26**i % 26) for i in range(1 + mixed % 4)))
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def write_gpt2(folder: Path, size: int) -> None:
    """Writes the files of a GPT-2 tokenizer; the tags come last, as in the published one."""
    letters = sorted(ByteLevel.alphabet())
    merged = _merges(_BY_FREQUENCY + _BY_FREQUENCY.upper(), "Ġ")  # Ġ is the blank in front of a word
    pairs = [next(merged) for _ in range(size - len(letters) - 1 - len(_TAGS))]
    words = [*letters, *map("".join, pairs), "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}, ensure_ascii=False),
        encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in pairs)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    end = "<|endoftext|>"
    tags = {f"[{tag}]": len(words) + i for i, tag in enumerate(_TAGS)}
    added = {str(i): _flags(tag, special=False) for tag, i in tags.items()}
    config = {
        "add_bos_token": False, "add_prefix_space": False, "bos_token": end, "eos_token": end, "unk_token": end,
        "added_tokens_decoder": {str(len(words) - 1): _flags(end, special=True)} | added,
        "clean_up_tokenization_spaces": False, "model_max_length": 1024, "tokenizer_class": "GPT2Tokenizer",
    }
    for name, content in (
        ("tokenizer_config.json", config),
        ("added_tokens.json", tags),
        ("special_tokens_map.json", dict.fromkeys(("bos_token", "eos_token", "unk_token"), end)),
    ):
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")


def _flags(content: str, special: bool) -> dict[str, object]:
    return {"content": content, "lstrip": False, "rstrip": False, "normalized": not special, "single_word": False,
            "special": special}


def _merges(letters: str, blank: str) -> Iterator[tuple[str, str]]:
    """Yields pairs of existing entries: to words of two letters, then of three."""
    two = list(product(blank + letters, letters))
    yield from two
    yield from ((a + b, c) for a, b in two for c in _BY_FREQUENCY)
