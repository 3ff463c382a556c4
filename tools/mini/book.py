"""T3's codes: the phones spoken, and the position reached in the text.

A small transformer that must infer its position in the text at every step, from its last codes, loses it. So
each code also carries the position, counted in text tokens, in base 7: two digits where both halves are one phone, one
digit at a change between two. To the flow all codes of one pair are the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from chatterbox_opt.config import SPEECH_CODES

from .codes import PHONES, pack, unpack

BASE = 7
# Tables whose sum is a code's embedding: the first phone; the second with the ones digit, since phone and position
# advance together; the ones digit; both digits (none at a change).
PARTS = (PHONES, PHONES * BASE, BASE, BASE**2 + 1)


class Book:
    """Codes of pairs of phones and places. `steady` (n,) phones, and `moving` (m,) pairs of unequal phones that have
    codes of their own; any other pair is written as its second phone."""

    def __init__(self, steady: Tensor, moving: Tensor) -> None:
        self.steady, self.moving = steady, moving
        places = torch.arange(BASE**2)
        held = pack(steady.repeat_interleave(2))
        pairs = torch.cat([held.repeat_interleave(len(places)), moving.repeat_interleave(BASE)])
        self.used = len(pairs)
        rows = len(places) * len(steady)
        count = torch.cat([places.repeat(len(steady)), places[:BASE].repeat(len(moving))])
        both = torch.cat([count[:rows], torch.full((self.used - rows,), BASE**2)])
        first, second = unpack(pairs).unbind(-1)
        self.pair = torch.cat([pairs, pairs.new_zeros(SPEECH_CODES - self.used)])  # (6561,) of each code
        ones = count % BASE
        self.parts = torch.stack([first, second * BASE + ones, ones, both], -1)  # (used, 4) rows of PARTS
        self.first = torch.full((SPEECH_CODES,), -1)  # code of each pair at place 0
        self.first[held] = torch.arange(len(steady)) * len(places)
        self.first[moving] = rows + torch.arange(len(moving)) * BASE

    @classmethod
    def of(cls, pairs: Tensor) -> Book:
        """Returns the book for (n,) pairs: all phones, and as many of the most frequent changes as fit."""
        counts = pairs.bincount(minlength=SPEECH_CODES)
        both = unpack(torch.arange(SPEECH_CODES))
        same = both[:, 0] == both[:, 1]
        steady = both[counts > 0].unique()
        room = (SPEECH_CODES - len(steady) * BASE**2) // BASE
        counts[same] = 0
        moving = counts.sort(descending=True, stable=True).indices[: min(room, int((counts > 0).sum()))]
        return cls(steady, moving)

    @classmethod
    def at(cls, work: Path, items: Iterable[dict[str, Tensor]] = ()) -> Book:
        """Returns the book of a work folder, or makes one for `items`."""
        file = work / "book.pt"
        if not file.exists():
            book = cls.of(torch.cat([i["codes"].long() for i in items]))
            torch.save((book.steady, book.moving), file)
        return cls(*torch.load(file, weights_only=True))

    def write(self, pairs: Tensor, places: Tensor) -> Tensor:
        """Returns (n,) codes for (n,) pairs at (n,) positions in the text."""
        pairs = torch.where(self.first[pairs] < 0, unpack(pairs)[:, 1] * (1 + PHONES), pairs)
        moving = unpack(pairs)[:, 0] != unpack(pairs)[:, 1]
        return self.first[pairs] + torch.where(moving, places % BASE, places % BASE**2)
