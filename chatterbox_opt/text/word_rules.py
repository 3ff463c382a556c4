"""Applies a vocabulary's rules for whole words in one pass.

The small voice's vocabulary has the pronunciations of 6,000 words as rules of its normalizer. The library tries each of
them on every text, which takes 15 ms a sentence. The result here is the same; texts for which it might not be are left
to the library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from tokenizers import Tokenizer

RULE = re.compile(r"\\b('?[a-z]+(?:'[a-z]+)*)\\b")  # a rule that concerns one word
RUN = re.compile(r"[\w']+", re.ASCII)  # no such rule concerns more than one
FEW = 50  # rules, which the library applies as fast


class WordRules:
    """The first rules of a normalizer, in their order, and a tokenizer with the others."""

    def __init__(self, words: Iterable[tuple[str, str]], others: Tokenizer) -> None:
        self.said: dict[str, str] = {}
        for word, said in words:
            self.said.setdefault(word, said)
        self.rank = {word: i for i, word in enumerate(self.said)}
        self.longest = max((word.count("'") + 1 for word in self.said), default=0)  # parts between apostrophes
        self.others = others

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> WordRules | None:
        """Returns None if the tokenizer has few rules of this kind, or others come before."""
        data = json.loads(tokenizer.to_str())
        first, *rules = (data["normalizer"] or {}).get("normalizers") or [None]
        if first != {"type": "Lowercase"}:
            return None
        words: list[tuple[str, str]] = []
        for rule in rules:
            found = RULE.fullmatch((rule.get("pattern") or {}).get("Regex", ""))
            if rule["type"] != "Replace" or found is None:
                break
            words.append((found[1], rule["content"]))
        if len(words) < FEW:
            return None
        others = data | {"normalizer": {"type": "Sequence", "normalizers": rules[len(words) :]}}
        return cls(words, Tokenizer.from_str(json.dumps(others)))

    def ids(self, text: str, space: str) -> list[int] | None:
        """Returns the ids of a text whose blanks are spelt `space`. None: the library must do it, as other letters have
        other rules for case and words, and names of tokens stay as they are."""
        if not text.isascii() or "[" in text:
            return None
        text = text.lower()
        if any("'" + part in self.said for run in RUN.findall(text) for part in run.split("'")[1:]):
            return None  # a rule that begins with an apostrophe depends on what it stands behind
        return self.others.encode(RUN.sub(self._said, text).replace(" ", space)).ids

    def _said(self, found: re.Match[str]) -> str:
        run = found[0]
        if "'" not in run:
            return self.said.get(run, run)
        parts = run.split("'")
        bounds = [(i, j) for i in range(len(parts)) for j in range(i + 1, min(i + self.longest, len(parts)) + 1)]
        words = {at: "'".join(parts[slice(*at)]) for at in bounds}
        said: dict[int, tuple[int, str]] = {}  # first part -> (past the last, what is said)
        free = set(range(len(parts)))
        for i, j in sorted((at for at in bounds if words[at] in self.rank), key=lambda at: self.rank[words[at]]):
            if free.issuperset(range(i, j)):
                said[i] = j, self.said[words[i, j]]
                free.difference_update(range(i, j))
        return "'".join(said[i][1] if i in said else part for i, part in enumerate(parts) if i in said or i in free)
