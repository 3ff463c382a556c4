"""Writes files atomically, and keeps other runs out of a folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

PART = ".part"  # the ending of files still being written
LOCK = "lock"  # the file of locked()


def cache_folder() -> Path:
    """Returns this package's folder among the user's caches; it may not exist yet."""
    home = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if os.name == "nt" else None)
    return Path(home or os.path.expanduser("~/.cache")) / "chatterbox_opt"


def write_whole(path: Path, data: bytes) -> None:
    """Writes the file under a temporary name and then renames it, so that it is complete once it exists."""
    part = path.with_name(path.name + PART)
    with whole(path, part):
        part.write_bytes(data)


@contextmanager
def whole(path: Path, part: Path) -> Iterator[None]:
    """For writing `part`, a file in the folder of `path`: it is renamed to that, or removed if the block raises."""
    try:
        yield
        _sync(part)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_new(path: Path, data: bytes, writer: str) -> None:
    """As write_whole(), but raises FileExistsError if the file exists: of several writers one succeeds. `writer` names
    this one in its temporary file."""
    part = path.with_name(path.name + writer + PART)
    try:
        part.write_bytes(data)
        _sync(part)
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


def _sync(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def check_writable(folder: Path) -> None:
    """Raises ValueError if no file can be made in the folder."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{folder}: no file can be written there ({error.strerror})") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder, and raises ValueError if another run has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "ab") as file:
        lock(file, folder)
        yield


def lock(file: IO[Any], folder: Path) -> None:
    """Locks an open file of the folder. The system releases the lock however the process ends. A system, or a file
    system, without such locks checks nothing."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(f"{folder}: another run is writing into it; wait for it, or give another folder") from error
    except OSError:
        return
