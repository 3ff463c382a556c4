"""tokenizer.json in the published English layout: phones of known words, and frequent letter groups for the others.

The file's own normaliser lower-cases and looks words up: this T3 has no weights to spare for capitals and spelling.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from chatterbox_opt.config import START_TEXT, STOP_TEXT

from .lexicon import ALPHABET

SPECIAL = {"[STOP]": STOP_TEXT, "[UNK]": 1, "[SPACE]": 2, "[START]": START_TEXT}
MARKS = r"[^A-Za-z']"


def write(file: Path, texts: list[str], size: int, lexicon: dict[str, str]) -> None:
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.Lowercase()  # the lexicon comes last: groups are learned from letters
    made.pre_tokenizer = pre_tokenizers.Split(Regex(MARKS), "isolated")
    alphabet = list("abcdefghijklmnopqrstuvwxyz'.,!?;:-\"")
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(SPECIAL) - len(ALPHABET), initial_alphabet=alphabet, min_frequency=3, show_progress=False
    )
    made.train_from_iterator((word for text in texts for word in text.split()), trainer)
    known = [normalizers.Replace(Regex(rf"\b{word}\b"), said) for word, said in lexicon.items()]
    made.normalizer = normalizers.Sequence([normalizers.Lowercase(), *known])
    data = json.loads(made.to_str())
    pieces = sorted(data["model"]["vocab"], key=data["model"]["vocab"].get) + ALPHABET
    free = (i for i in range(size) if i not in SPECIAL.values())
    data["model"]["vocab"] = SPECIAL | {piece: next(free) for piece in pieces}
    data["model"]["unk_token"] = "[UNK]"
    data["added_tokens"] = [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for token, i in sorted(SPECIAL.items(), key=lambda pair: pair[1])
    ]
    file.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
