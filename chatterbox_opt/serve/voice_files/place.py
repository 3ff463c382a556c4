"""Where voices are kept: a folder, or a URL of a store that fsspec knows."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Protocol

from .folder import VoiceFolder
from .form import About, Damaged

LOCAL = ("file://", "local://")


class Place(Protocol):
    """All raise OSError where it cannot be reached. Files are told apart by what `listing` gives for each."""

    patience: float  # s for which a listing is new enough, as long as it has what is looked for

    def listing(self) -> dict[str, Hashable]:
        """Which file each voice has, by the voice's id."""

    def abouts(self, identities: Iterable[str]) -> dict[str, About | Damaged]:
        """What the files say of their voices; nothing of those that are not there as a whole, now or yet."""

    def read(self, identity: str) -> tuple[About, bytes]:
        """What the file says of itself, and the whole of it. Raises FileNotFoundError, and Damaged."""

    def create(self, identity: str, data: bytes) -> None:
        """Raises FileExistsError where there is one; of several at the same time one succeeds."""

    def remove(self, identity: str) -> None:
        """It need not be there."""

    def clear(self) -> None:
        """Away with what a server left that was ended in mid-write."""


def is_url(where: str | Path) -> bool:
    return isinstance(where, str) and "://" in where


def absolute(where: str | Path) -> str | Path:
    """The same place from any working directory."""
    return where if is_url(where) else Path(where).absolute()


def place_at(where: str | Path) -> Place:
    if not is_url(where):
        return VoiceFolder(Path(where))
    from .url import VoiceUrl, local_path

    path = local_path(str(where)) if str(where).startswith(LOCAL) else None
    return VoiceUrl(str(where)) if path is None else VoiceFolder(path)
