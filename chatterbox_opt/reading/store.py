"""What was spoken already, by its content: a file of sound and one of captions for each paragraph."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..audio.io import SoundWriter, blocks, read
from ..captions import Record

KEY = 16  # bytes
HALF = "out.half"  # a name for what is not complete
_OWN = re.compile(rf"(?P<key>[0-9a-f]{{{2 * KEY}}})(?P<half>\.half)?(\.flac|\.json)?|{re.escape(HALF)}(\.\w+)?")


def key_of(content: Any) -> str:
    """Equal for equal content, which is whatever JSON can hold."""
    data = json.dumps(content, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=KEY).hexdigest()


class Store:
    """A folder. What is in it is whole: a name appears when its file is complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __contains__(self, key: str) -> bool:
        return self._notes(key).is_file() and self._sound(key).is_file()

    def keep(self, key: str, wave: Tensor, rate: int, records: list[Record]) -> None:
        """(N,) samples; the notes come last, and say that both are there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        half = self._sound(key).with_suffix(".half.flac")
        with SoundWriter(half, rate) as file:
            file.add(wave.numpy())
        os.replace(half, self._sound(key))
        self.note(key, records)

    def note(self, key: str, records: list[Record]) -> None:
        half = self._notes(key).with_suffix(".half")
        half.write_text(json.dumps(records), encoding="utf-8")
        os.replace(half, self._notes(key))

    def records(self, key: str) -> list[Record]:
        return json.loads(self._notes(key).read_text(encoding="utf-8"))

    def sound(self, key: str) -> Iterator[np.ndarray]:
        """Its samples, int16, some at a time."""
        return blocks(self._sound(key))

    def wave(self, key: str) -> np.ndarray:
        """(N,) float32."""
        return read(self._sound(key))[0].numpy()

    def forget_others(self, keys: Collection[str]) -> None:
        """What was kept and is not of these, and halves that a killed run left behind; other files are not touched."""
        for path in self.folder.iterdir():
            found = _OWN.fullmatch(path.name)
            if found and (found["key"] not in keys or found["half"]):  # HALF has no key
                path.unlink()

    def _sound(self, key: str) -> Path:
        return self.folder / f"{key}.flac"

    def _notes(self, key: str) -> Path:
        return self.folder / f"{key}.json"
