"""Reads texts, writes files atomically, says which file an error is about, and keeps other runs out of a folder."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PART = ".part"  # the ending of files still being written
LOCK = "lock"  # the file of locked()
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # of writing; Python does not say with them which file
ASKED = 1 << 16  # bytes written to learn why no more can be


def cache_folder() -> Path:
    """Returns this package's folder among the user's caches; it may not exist yet."""
    home = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if os.name == "nt" else None)
    return Path(home or os.path.expanduser("~/.cache")) / "chatterbox_opt"


def check_readable(path: Path) -> None:
    """Raises ValueError if there is no file to read; a pipe is one."""
    if path.is_dir():
        raise ValueError(f"{path}: this is a folder; a file is needed")
    if not path.exists():
        raise ValueError(f"{path}: there is no such file")


def text_of(path: Path) -> str:
    return decoded(path.read_bytes(), path)


def tables_of(path: Path) -> dict[str, Any]:
    """Returns what a TOML file says. Raises ValueError, with the file's name, if it is none."""
    text = text_of(path)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from error


def decoded(data: bytes, name: object) -> str:
    """Returns a text without its byte order mark. `name` is for the message."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: it is not UTF-8 ({error}); save it as UTF-8") from error


@contextmanager
def naming(path: Path, part: Path | None = None) -> Iterator[None]:
    """For writing `path`, a file or folder: an error then has this name, and not that of `part`, which is written at
    first. If `part` is given, errors of libraries that know no reason get the system's, such as "No space left on
    device"."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL and (part is None or str(error.filename) != str(part)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except Exception as error:
        reason = _refusal(part) if part is not None else None
        if reason is None:
            raise
        raise OSError(reason.errno, reason.strerror, str(path)) from error


def _refusal(path: Path) -> OSError | None:
    """Returns the system's reason why no more can be written to a file, or in a folder; None if more can be. Makes
    nothing that stays but a longer file."""
    folder = path if path.is_dir() else path.parent
    try:
        with open(path, "ab") if path.is_file() else tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(ASKED))
    except OSError as error:
        return error
    return None


def write_whole(path: Path, data: bytes) -> None:
    """Writes the file under a temporary name and then renames it, so that it is complete once it exists."""
    part = path.with_name(path.name + PART)
    with whole(path, part):
        part.write_bytes(data)


@contextmanager
def whole(path: Path, part: Path) -> Iterator[None]:
    """For writing `part`, a file in the folder of `path`: it is renamed to that, or removed if the block raises."""
    try:
        with naming(path, part):
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
