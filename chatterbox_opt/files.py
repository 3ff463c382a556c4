"""Writes files atomically."""

from __future__ import annotations

import os
from pathlib import Path

PART = ".part"  # the ending of files still being written


def write_whole(path: Path, data: bytes, writer: str = "") -> None:
    """Writes the file under a temporary name and then renames it, so that it is complete once it exists. `writer`
    distinguishes those that may write one file at the same time."""
    part = path.with_name(path.name + writer + PART)
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
