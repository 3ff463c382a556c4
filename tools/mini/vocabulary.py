"""tokenizer.json in the published English layout, of frequent letter groups and whole words.

Letters are lower-cased by the file's own normaliser: half a million weights have none to spare for capitals.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from chatterbox_opt.config import START_TEXT, STOP_TEXT

SPECIAL = {"[STOP]": STOP_TEXT, "[UNK]": 1, "[SPACE]": 2, "[START]": START_TEXT}
MARKS = r"[^A-Za-z']"


def write(file: Path, texts: Iterable[str], size: int) -> None:
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Split(Regex(MARKS), "isolated")
    alphabet = list("abcdefghijklmnopqrstuvwxyz'.,!?;:-\"")
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(SPECIAL), initial_alphabet=alphabet, min_frequency=3, show_progress=False
    )
    made.train_from_iterator((word for text in texts for word in text.split()), trainer)
    data = json.loads(made.to_str())
    pieces = sorted(data["model"]["vocab"], key=data["model"]["vocab"].get)
    free = (i for i in range(size) if i not in SPECIAL.values())
    data["model"]["vocab"] = SPECIAL | {piece: next(free) for piece in pieces}
    data["model"]["unk_token"] = "[UNK]"
    data["added_tokens"] = [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for token, i in sorted(SPECIAL.items(), key=lambda pair: pair[1])
    ]
    file.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
