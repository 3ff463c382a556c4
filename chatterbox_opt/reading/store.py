"""Stores spoken paragraphs by a hash of their content: one sound file and one caption file each."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..audio.io import SoundWriter, blocks, read
from ..captions import Record
from ..files import naming, whole, write_whole

KEY = 16  # bytes
_OWN = re.compile(rf"(?P<key>[0-9a-f]{{{2 * KEY}}})(\.flac|\.json|(?P<half>\.half\.flac|\.json\.part))")
_NEEDED = "book-{}.json"  # the keys of a book: several may have one folder


def key_of(content: Any) -> str:
    """Returns a hash of `content`, which is anything that JSON can hold."""
    data = json.dumps(content, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=KEY).hexdigest()


class Store:
    """A folder whose files are complete: each is written under a temporary name and renamed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._readable: set[str] = set()  # entries that this run read once

    def __contains__(self, key: str) -> bool:
        """Whether the entry is there and can be read to its end; a damaged one counts as missing."""
        if key not in self._readable and self._reads(key):
            self._readable.add(key)
        return key in self._readable

    def _reads(self, key: str) -> bool:
        if not (self._notes(key).is_file() and self._sound(key).is_file()):
            return False
        try:
            return bool(self.records(key)) and sum(map(len, self.sound(key))) > 0
        except ValueError:
            return False

    def keep(self, key: str, wave: Tensor, rate: int, records: list[Record]) -> None:
        """Stores (N,) samples and their captions. The captions are written last: with them, the entry is complete."""
        half = self._sound(key).with_suffix(".half.flac")
        with naming(self.folder), whole(self._sound(key), half), SoundWriter(half, rate) as file:
            file.add(wave.numpy())
        self.note(key, records)

    def note(self, key: str, records: list[Record]) -> None:
        self._write(self._notes(key), records)

    def records(self, key: str) -> list[Record]:
        return json.loads(self._notes(key).read_text(encoding="utf-8"))

    def sound(self, key: str) -> Iterator[np.ndarray]:
        """Yields (n,) int16 samples, some seconds at a time."""
        return blocks(self._sound(key))

    def wave(self, key: str) -> np.ndarray:
        """Returns (N,) float32 samples."""
        return read(self._sound(key))[0].numpy()

    def need(self, book: Path, keys: Collection[str]) -> None:
        """Notes the entries that a book consists of."""
        self._write(self.folder / _NEEDED.format(key_of(str(book.resolve()))), sorted(keys))

    def forget_others(self) -> None:
        """Deletes entries that no book needs, and incomplete files of killed runs; leaves foreign files alone, and all
        entries if what a book needs cannot be read."""
        try:
            keys = {key for path in self.folder.glob(_NEEDED.format("*")) for key in json.loads(path.read_bytes())}
        except ValueError:
            return
        for path in self.folder.iterdir():
            found = _OWN.fullmatch(path.name)
            if found and (found["key"] not in keys or found["half"]):
                path.unlink()

    def _write(self, path: Path, content: Any) -> None:
        with naming(self.folder):  # users know the folder, not the names in it
            write_whole(path, json.dumps(content).encode())

    def _sound(self, key: str) -> Path:
        return self.folder / f"{key}.flac"

    def _notes(self, key: str) -> Path:
        return self.folder / f"{key}.json"
