"""Files that are found whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

PART = ".part"  # the ending of what is still being written


def write_whole(path: Path, data: bytes, writer: str = "") -> None:
    """Under another name first: what is found under its own is complete. `writer`: tells apart those that may write one
    file at the same time."""
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
