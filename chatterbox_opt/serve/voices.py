"""Voices that clients have brought: prepared once, kept in a folder or a store, on the model's device while in use.

A file is named after a digest of its voice's name: no name or path that comes from a client is ever a file's. Several
servers may have one place: what one of them keeps or deletes, the others notice when they are asked next.
"""

from __future__ import annotations

import errno
import io
import logging
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Hashable
from pathlib import Path
from typing import Any, BinaryIO

from .errors import ApiError, unavailable
from .recordings import check_recording
from .voice_files.form import ID, About, Damaged, checked, packed
from .voice_files.place import place_at
from .voice_names import DEFAULT, OPENAI_VOICES, check_name, folded, voice_id

logger = logging.getLogger(__name__)

ON_DEVICE = 32  # voices held ready
TRIES = 3  # at a voice that is replaced while it is read
NOT_AGAIN = {"x-should-retry": "false"}


class VoiceStore:
    """Safe from several threads. A voice that is deleted lives on in the speeches that have it."""

    def __init__(self, where: str | Path, model: Any, limit: int) -> None:
        self.place, self.model, self.limit = place_at(where), model, limit
        self.kind = "gpt" if model.config.t3.is_gpt else "llama"  # families of a kind share voices
        self._lock = threading.Lock()
        self._ready: OrderedDict[str, tuple[str, Any]] = OrderedDict()  # id -> digest of its sound, voice
        self._known: dict[str, About] = {}
        self._damaged: dict[str, str] = {}  # id -> why
        self._seen: dict[str, Hashable] = {}  # id -> which file it was, when it was looked into
        self._looking = threading.Lock()  # at the place, or changing it
        self._looked = -float("inf")
        try:
            self.refresh()
            self.place.clear()
        except OSError as error:
            raise OSError(f"voices={str(where)!r}: {error}") from error

    def refresh(self, patience: float = 0.0) -> None:
        """Cheap where nothing has changed. `patience`: s for which the last look is new enough."""
        if not self._looking.acquire(blocking=not patience):  # whoever is looking will tell
            return
        try:
            if time.monotonic() - self._looked < patience:
                return
            now = self.place.listing()
            changed = sorted(identity for identity, which in now.items() if self._seen.get(identity) != which)
            told = self.place.abouts(changed) if changed else {}
            with self._lock:
                for identity in self._known.keys() - now.keys():
                    self._forget(identity)
                for identity in changed:
                    self._learn(identity, told.get(identity))
            self._seen = {k: which for k, which in now.items() if k not in changed or k in told}
            self._looked = time.monotonic()
        finally:
            self._looking.release()

    def _learn(self, identity: str, about: About | Damaged | None) -> None:
        """Voices of another kind of model stay where they are. What was found to be damaged, and still says the same of
        itself, is so until it is spoken."""
        if about != self._known.get(identity):
            self._damaged.pop(identity, None)
        if isinstance(about, Damaged):
            about = self._nameless(identity, about)
        if about is None or about["kind"] != self.kind:
            self._forget(identity)
        elif identity not in (about["name"], voice_id(about["name"], self.kind)):
            self._known[identity] = self._nameless(identity, Damaged("its file is another voice's"))
        else:
            self._known[identity] = about

    def _nameless(self, identity: str, why: Damaged) -> About:
        logger.warning("voice %s: %s", identity, why)
        self._damaged[identity] = str(why)
        return {"name": identity, "kind": self.kind, "sound": ""}

    def _forget(self, identity: str) -> None:
        for one in (self._known, self._ready, self._damaged):
            one.pop(identity, None)

    # ---- what there is ---------------------------------------------------------------------------

    def own(self) -> bool:
        return self.model.conds is not None

    def listing(self) -> dict[str, Any]:
        """Every shape that a client reads: the model's own, what was brought, and OpenAI's names."""
        self._look()
        with self._lock:
            known = [_item(identity, about, self._damaged.get(identity)) for identity, about in self._known.items()]
        names = {folded(item["name"]) for item in known}
        own = [_plain(DEFAULT)] if self.own() else []
        aliases = [_plain(name) for name in OPENAI_VOICES if self.own() and name not in names]
        items = own + sorted(known, key=lambda item: folded(item["name"])) + aliases
        return {"object": "list", "data": items, "voices": items}

    def _look(self, patience: float = 0.0) -> None:
        try:
            self.refresh(patience)
        except OSError as error:
            logger.error("voices: %s", error)
            raise unavailable("The place where the voices are kept cannot be reached") from error

    def find(self, name: str) -> str | None:
        """The id of a voice that was brought, by its name or id, from a fresh look."""
        self._look()
        return self._identity(name)

    def _identity(self, name: str) -> str | None:
        identity = name if ID.fullmatch(name) else voice_id(name, self.kind)
        with self._lock:
            return identity if identity in self._known else None

    def name_of(self, name: str) -> str:
        """The name that a voice was brought under, as far as is known; other names as they are."""
        identity = self._identity(name)
        with self._lock:
            about = self._known.get(identity) if identity else None
        return about["name"] if about else name

    def get(self, name: str | None) -> Any:
        """Conditionals for the engine, or None for the model's own voice."""
        alias = not name or folded(name) in (DEFAULT, *OPENAI_VOICES)
        if name and folded(name) != DEFAULT:
            try:
                self._look(self.place.patience if alias or self._identity(name) else 0.0)
            except ApiError:
                if not alias and self._identity(name) is None:  # what is known goes on being spoken
                    raise
            if (identity := self._identity(name)) is not None:
                return self._load(identity, name)
        if not alias:
            raise _unknown(str(name))
        if not self.own():
            message = "This model has no voice of its own: bring one by POST /v1/audio/voices, and name it"
            raise ApiError(400, message, param="voice", code="voice_not_found")
        return None

    def _load(self, identity: str, name: str) -> Any:
        """What is held is what was read last: its file may be another one by then."""
        for left in reversed(range(TRIES)):
            with self._lock:
                wanted, damaged = self._known.get(identity), self._damaged.get(identity)
                digest, voice = self._ready.get(identity, ("", None))
                if wanted is not None and digest and digest == wanted["sound"]:
                    self._ready.move_to_end(identity)
                    return voice
            if wanted is None:
                raise _unknown(name)
            if damaged is not None and not wanted["sound"]:
                raise _broken(name, damaged)
            try:
                about, data = self.place.read(identity)
                voice = self._opened(data)
            except FileNotFoundError:
                self._look()  # and it is unknown, unless another is there already
                continue
            except ValueError as error:
                self._look()
                with self._lock:
                    if not left and self._known.get(identity) == wanted:
                        self._damaged[identity] = str(error) if isinstance(error, Damaged) else "its file is no voice"
                logger.error("voice %s: %s", identity, error)
                continue
            except OSError as error:
                logger.error("voice %s: %s", identity, error)
                raise unavailable(f"The voice {name!r} cannot be read now") from error
            if self._hold(identity, about["sound"], voice) or not left:
                return voice
            self._look()
        raise _broken(name, self._damaged.get(identity, "its file changes again and again"))

    def _opened(self, data: bytes) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "voice.pt"  # the ending says that it is a saved voice
            path.write_bytes(data)
            return self.model.prepare_voice(path)

    def _hold(self, identity: str, sound: str, voice: Any) -> bool:
        """Returns whether it is the one that is known now."""
        with self._lock:
            current = self._known.get(identity)
            if current is None or current["sound"] != sound:
                return False
            self._ready[identity] = sound, voice
            self._damaged.pop(identity, None)
            while len(self._ready) > ON_DEVICE:
                self._ready.popitem(last=False)
            return True

    # ---- coming and going ------------------------------------------------------------------------

    def add(self, name: str, recording: BinaryIO, consent: str | None = None) -> dict[str, Any]:
        """Prepare a voice from a recording and keep it."""
        name = check_name(name)
        identity = voice_id(name, self.kind)
        self._check_room(identity, name)
        seconds = check_recording(recording, "audio_sample")
        try:
            voice = self.model.prepare_voice(recording)
        except ValueError as error:
            message = str(error).replace("the open file", "the recording")
            raise ApiError(400, message, param="audio_sample", code="invalid_audio") from error
        about = {
            "name": name, "kind": self.kind, "family": self.model.config.family, "seconds": round(seconds, 2),
            "created_at": int(time.time()), "consent": consent,
        }
        sound = io.BytesIO()
        voice.save(sound)
        about = self._create(identity, name, packed(sound.getvalue(), about))
        self._hold(identity, about["sound"], voice)
        return _item(identity, about)

    def _check_room(self, identity: str, name: str) -> None:
        self._look()
        with self._lock:
            if identity in self._known:
                raise _taken(name)
            if len(self._known) >= self.limit:
                message = f"There are {self.limit} voices, as many as this server keeps; delete one first"
                raise ApiError(400, message, code="too_many_voices")

    def _create(self, identity: str, name: str, data: bytes) -> About:
        about = checked(data)
        try:
            with self._looking:
                self.place.create(identity, data)
                with self._lock:
                    self._known[identity] = about
        except FileExistsError as error:  # another server's, a moment ago
            raise _taken(name) from error
        except OSError as error:
            logger.error("voice %s: %s", identity, error)
            why = "its disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "its voices' place failed"
            message = f"The server could not keep the voice: {why}"
            raise ApiError(507, message, code="storage", headers=NOT_AGAIN) from error
        return about

    def delete(self, name: str) -> str:
        """The id of the voice that is gone."""
        identity = self.find(name)
        if identity is None:
            raise ApiError(404, f"There is no voice {name!r} that could be deleted", param="id", code="voice_not_found")
        try:
            with self._looking:
                self.place.remove(identity)
                with self._lock:
                    self._forget(identity)
        except OSError as error:
            logger.error("voice %s: %s", identity, error)
            message = f"The server could not delete {name!r}: its voices' place failed"
            raise ApiError(507, message, code="storage", headers=NOT_AGAIN) from error
        return identity


def _unknown(name: str) -> ApiError:
    message = f"voice={name!r}: there is no such voice; GET /v1/audio/voices lists them"
    return ApiError(400, message, param="voice", code="voice_not_found")


def _broken(name: str, why: str) -> ApiError:
    message = f"voice={name!r}: {why}; delete it, and bring it again"
    return ApiError(400, message, param="voice", code="voice_damaged")


def _taken(name: str) -> ApiError:
    message = f"There is a voice {name!r} already; delete it first, or choose another name"
    return ApiError(409, message, param="name", code="voice_exists", headers=NOT_AGAIN)


def _plain(name: str) -> dict[str, Any]:
    return {"id": name, "object": "audio.voice", "name": name, "value": name, "label": name, "deletable": False}


def _item(identity: str, about: About, damaged: str | None = None) -> dict[str, Any]:
    """`damaged`: why it cannot be spoken."""
    name = about["name"]
    more = {key: about.get(key) for key in ("created_at", "seconds")}
    return {**_plain(name), "id": identity, "value": identity, "deletable": True, "error": damaged, **more}
