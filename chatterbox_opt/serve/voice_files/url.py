"""Voices in a store that fsspec knows, such as s3://bucket/voices: an object each."""

from __future__ import annotations

import contextlib
import re
import time
import uuid
from collections.abc import Hashable, Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from ...files import PART
from .folder import FORGOTTEN
from .form import ID, TAIL, About, Damaged, about_of, checked

VOICE_OBJECT = re.compile(rf"({ID.pattern})\.pt")
PUTS_ARE_WHOLE = {"memory", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"}  # an object is seen once it is all there
READ_TIMES = ("time", "atime")  # of a file, which reading it changes
TICK = 2.0  # s; of the coarsest clock that tells one object from the next


class VoiceUrl:
    patience = 1.0  # s, as a listing may take a while and cost something

    def __init__(self, url: str) -> None:
        try:
            fs, root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ValueError(f"voices={url!r}: {error}") from error
        self.fs: Any = fs
        self.root = root.rstrip("/")
        protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        self._puts_are_whole = bool(protocols & PUTS_ARE_WHOLE)
        self._first: dict[tuple[str, Hashable], float] = {}  # when an object was listed first

    def listing(self) -> dict[str, Hashable]:
        out: dict[str, Hashable] = {}
        first: dict[tuple[str, Hashable], float] = {}
        now = time.monotonic()
        for one in self._files():
            if found := VOICE_OBJECT.fullmatch(_name(one)):
                which = tuple(sorted((key, str(value)) for key, value in one.items() if key not in READ_TIMES))
                key = found[1], which
                first[key] = self._first.get(key, now)
                # Another one of that size and time may still come, and is not seen to be one.
                out[found[1]] = (which, now) if now - first[key] < TICK else which
        self._first = first
        return out

    def _files(self) -> list[dict[str, Any]]:
        with as_os_errors():
            self.fs.invalidate_cache(self.root)
            try:
                return [one for one in self.fs.ls(self.root, detail=True) if one["type"] == "file"]
            except FileNotFoundError:  # made when it is needed
                return []

    def abouts(self, identities: Iterable[str]) -> dict[str, About | Damaged]:
        names = list(identities)
        with as_os_errors():
            tails = self.fs.cat_ranges([self._path(name) for name in names], -TAIL, None, on_error="return")
        found: dict[str, About | Damaged] = {}
        for name, tail in zip(names, tails):
            if isinstance(tail, FileNotFoundError):
                continue
            if isinstance(tail, Exception):
                raise OSError(str(tail) or repr(tail)) from tail
            try:
                found[name] = about_of(tail)
            except Damaged as error:
                found[name] = error
        return found

    def read(self, identity: str) -> tuple[About, bytes]:
        with as_os_errors():
            data = self.fs.cat_file(self._path(identity))
        return checked(data), data

    def create(self, identity: str, data: bytes) -> None:
        path = self._path(identity)
        with as_os_errors():
            if self._puts_are_whole:
                self.fs.pipe_file(path, data, mode="create")
                return
            part = f"{path}.{uuid.uuid4().hex[:8]}{PART}"
            self.fs.makedirs(self.root, exist_ok=True)
            try:
                self.fs.pipe_file(part, data)
                self.fs.invalidate_cache(self.root)
                if self.fs.exists(path):
                    raise FileExistsError(path)
                self.fs.mv(part, path)
            except BaseException:
                with contextlib.suppress(Exception):
                    self.fs.rm_file(part)
                raise

    def remove(self, identity: str) -> None:
        with as_os_errors(), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self._path(identity))

    def clear(self) -> None:
        for one in self._files():
            if _name(one).endswith(PART):
                with contextlib.suppress(Exception):  # another server's, that has written it meanwhile; or no times
                    written = self.fs.modified(one["name"]).replace(tzinfo=timezone.utc)
                    if (datetime.now(timezone.utc) - written).total_seconds() > FORGOTTEN:
                        self.fs.rm_file(one["name"])

    def _path(self, identity: str) -> str:
        return f"{self.root}/{identity}.pt"


def local_path(url: str) -> Path:
    """A file:// URL is a folder, and has more to offer as one."""
    return Path(url_to_fs(url)[1])


def _name(one: dict[str, Any]) -> str:
    return one["name"].rsplit("/", 1)[-1]


@contextlib.contextmanager
def as_os_errors() -> Iterator[None]:
    """Stores have errors of their own."""
    try:
        yield
    except (OSError, Damaged):
        raise
    except Exception as error:
        raise OSError(str(error) or repr(error)) from error
