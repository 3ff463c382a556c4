"""Voices in a folder that several servers may have, such as one of a network. Folders of earlier versions are read
too: there a voice is two files, its sound (.pt) and what it is called (.json)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import uuid
from collections.abc import Hashable, Iterable
from pathlib import Path

from ...files import PART, write_new
from .form import ID, TAIL, About, Damaged, about_of, checked

VOICE_FILE = re.compile(rf"({ID.pattern})\.(pt|json)")
FORGOTTEN = 600  # s after which a half-written file is nobody's any more
SETTLED = 2.0  # s after which a change would show in the folder's time, on all file systems that are known of
TRIES = 3  # at two files that belong together


class VoiceFolder:
    patience = 0.0  # s; an unchanged folder is not read again

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer = uuid.uuid4().hex[:8]
        self._listed: dict[str, Hashable] = {}
        self._time = -1  # ns; of the folder as it was read last

    def listing(self) -> dict[str, Hashable]:
        try:
            changed = self.folder.stat().st_mtime_ns
            if changed == self._time:
                return self._listed
            files: dict[str, dict[str, Hashable]] = {}
            for entry in os.scandir(self.folder):
                if found := VOICE_FILE.fullmatch(entry.name):
                    with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                        files.setdefault(found[1], {})[found[2]] = _which(entry.stat())
        except FileNotFoundError:  # made when it is needed
            self._time, self._listed = -1, {}
            return {}
        settled = time.time() - changed / 1e9 > SETTLED and all("pt" in endings for endings in files.values())
        self._time = changed if settled else -1  # otherwise the next change might have this one's time
        self._listed = {identity: tuple(sorted(endings.items())) for identity, endings in files.items()}
        return self._listed

    def abouts(self, identities: Iterable[str]) -> dict[str, About | Damaged]:
        told = ((identity, self._told(identity)) for identity in identities)
        return {identity: about for identity, about in told if about is not None}

    def _told(self, identity: str) -> About | Damaged | None:
        try:
            return self._about(identity)
        except Damaged as error:
            why = error
        except FileNotFoundError:
            why = Damaged("the file of its sound is missing")
        except PermissionError:
            why = Damaged("its file must not be read")
        return why if self._old(identity) else None

    def _about(self, identity: str) -> About:
        with open(self._file(identity), "rb") as file:
            if (about := self._told_beside(identity)) is not None:
                return about | {"sound": _sound(os.fstat(file.fileno()))}
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            return about_of(file.read())

    def _told_beside(self, identity: str) -> About | None:
        """Of a voice that is two files."""
        try:
            about = json.loads(self._file(identity, ".json").read_text(encoding="utf-8"))
            if not all(isinstance(about[key], str) for key in ("name", "kind")):
                raise TypeError("no names")
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise Damaged("its file does not say what it is called") from error
        return about

    def _old(self, identity: str) -> bool:
        """Whether nobody is still writing it, or a network still bringing it."""
        times = []
        for ending in (".pt", ".json"):
            with contextlib.suppress(FileNotFoundError):
                times.append(self._file(identity, ending).stat().st_mtime)
        return bool(times) and time.time() - max(times) > FORGOTTEN

    def read(self, identity: str) -> tuple[About, bytes]:
        for _ in range(TRIES):
            with open(self._file(identity), "rb") as file:
                told, sound = self._told_beside(identity), _sound(os.fstat(file.fileno()))
                data = file.read()
            if told is None:
                return checked(data), data
            if self._told_beside(identity) == told:
                return told | {"sound": sound}, data
        raise Damaged("its two files do not belong together")

    def create(self, identity: str, data: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._file(identity, ".json").exists():
            raise FileExistsError(identity)
        write_new(self._file(identity), data, self._writer)

    def remove(self, identity: str) -> None:
        for ending in (".json", ".pt"):
            self._file(identity, ending).unlink(missing_ok=True)

    def clear(self) -> None:
        for path in self.folder.glob("*" + PART):
            with contextlib.suppress(FileNotFoundError):  # another server's, that has written it meanwhile
                if time.time() - path.stat().st_mtime > FORGOTTEN:
                    path.unlink()

    def _file(self, identity: str, ending: str = ".pt") -> Path:
        return self.folder / (identity + ending)


def _which(file: os.stat_result) -> tuple[int, int, int]:
    return file.st_mtime_ns, file.st_ino, file.st_size


def _sound(file: os.stat_result) -> str:
    """Stands for a digest where none was written."""
    return f"{file.st_mtime_ns}-{file.st_ino}"
