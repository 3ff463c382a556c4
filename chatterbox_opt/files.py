"""Writes files atomically."""

from __future__ import annotations

import os
from pathlib import Path

PART = ".part"  # the ending of files still being written


def write_whole(path: Path, data: bytes) -> None:
    """Writes the file under a temporary name and then renames it, so that it is complete once it exists."""
    part = path.with_name(path.name + PART)
    try:
        _write(part, data)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_new(path: Path, data: bytes, writer: str) -> None:
    """As write_whole(), but raises FileExistsError if the file exists: of several writers one succeeds. `writer` names
    this one in its temporary file."""
    part = path.with_name(path.name + writer + PART)
    try:
        _write(part, data)
        try:
            os.link(part, path)
        except FileExistsError:
            raise
        except OSError:  # no hard links here: the name is taken by an empty file, and that replaced
            with open(path, "xb"):
                pass
            try:
                os.replace(part, path)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
    finally:
        part.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
