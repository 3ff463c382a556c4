"""The seeds of the utterances of one text."""

from __future__ import annotations

import hashlib


def piece_seed(seed: int, index: int) -> int:
    """Returns the seed of the text for its first utterance, and for others a hash, so that no two texts share one."""
    if index == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
