"""tokenizer.json in the published English layout: phones of known words, and letters of the others.

The file's own normaliser lower-cases and looks words up: this T3 has no weights to spare for capitals and spelling.
There are no groups of letters: T3's codes count places in the text, and a group would be several phones at one place.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from chatterbox_opt.config import START_TEXT, STOP_TEXT

from .lexicon import ALPHABET
from .sentences import ONES

SPECIAL = {"[STOP]": STOP_TEXT, "[UNK]": 1, "[SPACE]": 2, "[START]": START_TEXT}
LETTERS = "abcdefghijklmnopqrstuvwxyz'.,!?;:-\""
DIGITS = ("zero", *ONES[:9])  # each is read by itself
MARKS = r"[^A-Za-z']"


def write(file: Path, lexicon: dict[str, str]) -> None:
    free = (i for i in range(START_TEXT) if i not in SPECIAL.values())
    vocab = SPECIAL | {piece: next(free) for piece in [*LETTERS, *ALPHABET]}
    made = Tokenizer(models.BPE(vocab, [], unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(MARKS), "isolated")
    known = [normalizers.Replace(Regex(rf"\b{word}\b"), said) for word, said in lexicon.items()]
    digits = [normalizers.Replace(str(i), lexicon[name]) for i, name in enumerate(DIGITS) if name in lexicon]
    made.normalizer = normalizers.Sequence([normalizers.Lowercase(), *known, *digits])
    data = json.loads(made.to_str())
    data["added_tokens"] = [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for token, i in sorted(SPECIAL.items(), key=lambda pair: pair[1])
    ]
    file.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
