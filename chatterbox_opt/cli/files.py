"""Files of the commands, checked before a model is downloaded and loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def check_recordings(*paths: Path | None) -> None:
    from ..audio.io import must_be_file

    for path in paths:
        if path is not None:
            must_be_file(path)


def check_output(path: Path) -> None:
    from ..audio.io import writable_kinds

    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"{path}: cannot be written")
    if path.suffix and path.suffix[1:].upper() not in writable_kinds():
        raise ValueError(f"{path}: sound cannot be written as {path.suffix}; .wav, .flac, .ogg and .mp3 are known")


def check_captions(path: Path) -> None:
    from ..captions import check_kind

    check_kind(path.suffix.lower(), path)
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")


def save(path: Path, wav: Any, rate: int) -> None:
    from ..audio.io import write_wav

    write_wav(path, wav, rate)
    print(f"{path}: {wav.shape[-1] / rate:.2f} s")
