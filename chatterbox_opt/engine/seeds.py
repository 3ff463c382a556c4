"""The seeds of a text's utterances."""

from __future__ import annotations

import hashlib


def piece_seed(seed: int, index: int) -> int:
    """The first utterance has the text's own; the others' are mixed so that two texts share none."""
    if index == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
