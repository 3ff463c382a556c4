"""One voice in one file: what the library saves and loads (.pt), and what it is called in the comment that a zip file
may end with. So a voice is there as a whole or not at all, and is known from its last bytes."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from typing import Any

About = dict[str, Any]  # "name", "kind" (of model), "sound" (a digest, equal for equal sound), and what is told of it

ID = re.compile(r"voice_[0-9a-f]{16}")
END = b"PK\x05\x06"  # of a zip file; 18 bytes follow, the last two of them the comment's length
END_BYTES = 22
TAIL = 20_000  # bytes; a comment has less: 1000 letters of consent are up to 12,000


class Damaged(ValueError):
    """A file that is no voice, or not any more; the words say why."""


def packed(sound: bytes, about: About) -> bytes:
    """`sound`: what a voice saved. Its digest is added to `about`."""
    if sound[-END_BYTES:][:4] != END or sound[-2:] != b"\0\0":
        raise Damaged("no zip file without a comment")
    comment = json.dumps(about | {"sound": digest(sound[:-2])}).encode()
    return sound[:-2] + struct.pack("<H", len(comment)) + comment


def about_of(tail: bytes) -> About:
    """`tail`: the last bytes of a file."""
    end = tail.rfind(END)
    try:
        (length,) = struct.unpack("<H", tail[end + END_BYTES - 2 : end + END_BYTES])
        comment = tail[end + END_BYTES :]
        if end < 0 or length != len(comment):
            raise ValueError("its end is cut off")
        about = json.loads(comment)
        if not all(isinstance(about[key], str) for key in ("name", "kind", "sound")):
            raise ValueError("its name is none")
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise Damaged("its file does not say what it is called") from error
    return about


def checked(data: bytes) -> About:
    """What a whole file says of itself, once its bytes are seen to be those that were written."""
    about = about_of(data[-TAIL:])
    if digest(data[: data.rfind(END) + END_BYTES - 2]) != about["sound"]:
        raise Damaged("its file has changed since it was written")
    return about


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
