"""Voices that clients have brought: prepared once, kept in a folder, on the model's device while they are in use.

A voice is two files, named after a digest of its name: what it sounds like (.pt) and what it is called (.json). The
second is written last and removed first, so that a voice is there as a whole or not at all. No name or path that comes
from a client is ever a file's. Several servers may have one folder: what one of them keeps or deletes, the others
notice when they are asked next.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import re
import threading
import time
import unicodedata
import uuid
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

from ..audio.io import describe
from ..files import PART, write_whole
from .errors import ApiError

logger = logging.getLogger(__name__)

OPENAI_VOICES = (
    "alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer", "verse",
)
DEFAULT = "default"  # the model's own voice
LONGEST_NAME = 64
ID = re.compile(r"voice_[0-9a-f]{16}")
VOICE_FILE = re.compile(ID.pattern + r"\.json")
MAX_SECONDS = 600  # of a recording
MAX_SAMPLES = 60_000_000  # of all its channels: 240 MB when it is decoded, however small the file is
ON_DEVICE = 32  # voices held ready
FORGOTTEN = 600  # s after which a half-written file is nobody's any more
SETTLED = 2.0  # s after which a change would show in the folder's time, on all file systems that are known of


def voice_id(name: str, kind: str) -> str:
    """Returns what a voice and its files are called. Kinds of model may share a folder, each with a voice of a name."""
    folded = _folded(name).encode(errors="surrogatepass")
    return "voice_" + hashlib.blake2b(folded, digest_size=8, person=kind.encode()).hexdigest()


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip()).casefold()


def check_name(name: str) -> str:
    name = unicodedata.normalize("NFC", name.strip())
    bad = [c for c in name if c in "/\\" or unicodedata.category(c)[0] == "C"]
    if not name or len(name) > LONGEST_NAME or bad:
        message = f"name: 1 to {LONGEST_NAME} letters, digits, blanks and the like are needed, no slashes"
        raise ApiError(400, message, param="name", code="invalid_name")
    if _folded(name) == DEFAULT or ID.fullmatch(name):
        raise ApiError(400, f"name: {name!r} is kept for the server's own use", param="name", code="invalid_name")
    return name


class VoiceStore:
    """Safe from several threads. A voice that is deleted lives on in the speeches that have it."""

    def __init__(self, folder: Path, model: Any, limit: int) -> None:
        self.folder, self.model, self.limit = folder, model, limit
        self.kind = "gpt" if model.config.t3.is_gpt else "llama"  # families of a kind share voices
        self._lock = threading.Lock()
        self._ready: OrderedDict[str, Any] = OrderedDict()
        self._known: dict[str, dict[str, Any]] = {}
        self._seen: dict[str, tuple[int, int]] = {}  # file's name -> which it was, when it was read
        self._folder_time = -1  # ns; of the folder as it was read last
        self._writer = uuid.uuid4().hex[:8]
        self.refresh()
        self._clear()

    def refresh(self) -> None:
        """Cheap where the folder has not changed."""
        with self._lock:
            try:
                changed = self.folder.stat().st_mtime_ns
                if changed == self._folder_time:
                    return
                there = [entry for entry in os.scandir(self.folder) if VOICE_FILE.fullmatch(entry.name)]
                now = {entry.name: _which(entry.stat()) for entry in there}
            except OSError:  # there is none yet, or it cannot be reached now
                return
            for name in self._seen.keys() - now.keys():
                self._forget(Path(name).stem)
            for name in sorted(name for name, which in now.items() if self._seen.get(name) != which):
                self._forget(Path(name).stem)
                if not self._read(self.folder / name):
                    del now[name]
            settled = time.time() - changed / 1e9 > SETTLED and len(now) == len(there)
            self._seen = now
            self._folder_time = changed if settled else -1  # otherwise the next change might have this one's time

    def _forget(self, identity: str) -> None:
        self._known.pop(identity, None)
        self._ready.pop(identity, None)

    def _clear(self) -> None:
        """Away with what a server left that was ended in mid-write."""
        for path in self.folder.glob("*" + PART):
            with contextlib.suppress(FileNotFoundError):  # another server's, that has written it meanwhile
                if time.time() - path.stat().st_mtime > FORGOTTEN:
                    path.unlink()

    def _read(self, path: Path) -> bool:
        """Returns whether that was all there is to it: what a network's file system does not show yet is to be read
        again. Voices of another kind of model, and files of others, stay where they are."""
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            kind = about["kind"]
            identity = voice_id(about["name"], kind)
        except OSError:
            return False
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("%s: not a voice of this server, and left alone (%s)", path.name, error)
            return True
        if path.stem != identity or kind != self.kind:
            return True
        if self._file(identity).is_file():
            self._known[identity] = about
            return True
        with contextlib.suppress(OSError):
            return time.time() - path.stat().st_mtime > FORGOTTEN
        return False

    def _file(self, identity: str, ending: str = ".pt") -> Path:
        return self.folder / (identity + ending)

    # ---- what there is ---------------------------------------------------------------------------

    def own(self) -> bool:
        return self.model.conds is not None

    def listing(self) -> dict[str, Any]:
        """Every shape that a client reads: the model's own, what was brought, and OpenAI's names."""
        self.refresh()
        with self._lock:
            known = [_item(identity, about) for identity, about in self._known.items()]
        names = {_folded(item["name"]) for item in known}
        own = [_plain(DEFAULT)] if self.own() else []
        aliases = [_plain(name) for name in OPENAI_VOICES if self.own() and name not in names]
        items = own + sorted(known, key=lambda item: _folded(item["name"])) + aliases
        return {"object": "list", "data": items, "voices": items}

    def brought(self) -> list[dict[str, Any]]:
        return [item for item in self.listing()["data"] if item["deletable"]]

    def find(self, name: str) -> str | None:
        """The id of a voice that was brought, by its name or id."""
        self.refresh()
        identity = name if ID.fullmatch(name) else voice_id(name, self.kind)
        with self._lock:
            return identity if identity in self._known else None

    def get(self, name: str | None) -> Any:
        """Conditionals for the engine, or None for the model's own voice."""
        identity = self.find(name) if name else None
        if identity is not None:
            return self._load(identity)
        if name and _folded(name) not in (DEFAULT, *OPENAI_VOICES):
            message = f"voice={name!r}: there is no such voice; GET /v1/audio/voices lists them"
            raise ApiError(400, message, param="voice", code="voice_not_found")
        if not self.own():
            message = "This model has no voice of its own: bring one by POST /v1/audio/voices, and name it"
            raise ApiError(400, message, param="voice", code="voice_not_found")
        return None

    def _load(self, identity: str) -> Any:
        with self._lock:
            if identity in self._ready:
                self._ready.move_to_end(identity)
                return self._ready[identity]
        try:
            voice = self.model.prepare_voice(self._file(identity))
        except (OSError, ValueError) as error:
            logger.error("voice %s: %s", identity, error)
            raise ApiError(400, "voice: its file is gone or damaged; bring it again", param="voice") from error
        self._hold(identity, voice)
        return voice

    def _hold(self, identity: str, voice: Any) -> None:
        with self._lock:
            if identity in self._known:
                self._ready[identity] = voice
            while len(self._ready) > ON_DEVICE:
                self._ready.popitem(last=False)

    # ---- coming and going ------------------------------------------------------------------------

    def add(self, name: str, recording: BinaryIO, consent: str | None = None) -> dict[str, Any]:
        """Prepare a voice from a recording and keep it."""
        name = check_name(name)
        identity = voice_id(name, self.kind)
        self._check_room(identity, name)
        seconds = check_recording(recording)
        try:
            voice = self.model.prepare_voice(recording)
        except ValueError as error:
            message = str(error).replace("the open file", "the recording")
            raise ApiError(400, message, param="audio_sample", code="invalid_audio") from error
        about = {
            "name": name, "kind": self.kind, "family": self.model.config.family, "seconds": round(seconds, 2),
            "created_at": int(time.time()), "consent": consent,
        }
        self._write(identity, voice, about)
        self._hold(identity, voice)
        return _item(identity, about)

    def _check_room(self, identity: str, name: str) -> None:
        self.refresh()
        with self._lock:
            if identity in self._known:
                message = f"There is a voice {name!r} already; delete it first, or choose another name"
                raise ApiError(409, message, param="name", code="voice_exists", headers={"x-should-retry": "false"})
            if len(self._known) >= self.limit:
                message = f"There are {self.limit} voices, as many as this server keeps; delete one first"
                raise ApiError(400, message, code="too_many_voices")

    def _write(self, identity: str, voice: Any, about: dict[str, Any]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            sound = io.BytesIO()  # torch would turn a full disk into an error of its own
            voice.save(sound)
            write_whole(self._file(identity), sound.getvalue(), self._writer)
            told = self._file(identity, ".json")
            write_whole(told, json.dumps(about).encode(), self._writer)
            which = _which(told.stat())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._remove(identity)
            logger.error("voice %s: %s", identity, error)
            why = "its disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "its voices folder failed"
            message = f"The server could not keep the voice: {why}"
            raise ApiError(507, message, code="storage", headers={"x-should-retry": "false"}) from error
        with self._lock:
            self._known[identity] = about
            self._seen[told.name] = which

    def delete(self, name: str) -> str:
        """The id of the voice that is gone."""
        identity = self.find(name)
        if identity is None:
            raise ApiError(404, f"There is no voice {name!r} that could be deleted", param="id", code="voice_not_found")
        try:
            self._remove(identity)
        except OSError as error:
            logger.error("voice %s: %s", identity, error)
            message = f"The server could not delete {name!r}: its voices folder failed"
            raise ApiError(507, message, code="storage", headers={"x-should-retry": "false"}) from error
        with self._lock:
            self._forget(identity)
        return identity

    def _remove(self, identity: str) -> None:
        for ending in (".json", ".pt"):
            self._file(identity, ending).unlink(missing_ok=True)


def _which(file: os.stat_result) -> tuple[int, int]:
    return file.st_mtime_ns, file.st_ino


def check_recording(recording: BinaryIO) -> float:
    """Its seconds; raises before anything is decoded where it is no recording, or a small file of endless sound."""
    try:
        seconds, rate, channels = describe(recording)
    except ValueError as error:
        message = str(error).replace("the open file", "the recording")
        raise ApiError(400, message, param="audio_sample", code="invalid_audio") from error
    if seconds > MAX_SECONDS or seconds * rate * channels > MAX_SAMPLES:
        message = (
            f"the recording has {seconds:.0f} s at {rate} Hz and {channels} channels; at most {MAX_SECONDS} s and "
            f"{MAX_SAMPLES} samples are taken"
        )
        raise ApiError(400, message, param="audio_sample", code="invalid_audio")
    return seconds


def _plain(name: str) -> dict[str, Any]:
    return {"id": name, "object": "audio.voice", "name": name, "value": name, "label": name, "deletable": False}


def _item(identity: str, about: dict[str, Any]) -> dict[str, Any]:
    name = about["name"]
    more = {key: about.get(key) for key in ("created_at", "seconds")}
    return {**_plain(name), "id": identity, "value": identity, "deletable": True, **more}
