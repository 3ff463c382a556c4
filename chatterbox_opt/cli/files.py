"""Files of the commands, checked before a model is downloaded and loaded; and standard output in the place of one."""

from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path
from typing import Any

from ..files import check_writable, naming, whole

STDOUT = Path("-")


def check_recordings(*paths: Path | None) -> None:
    from ..audio.io import must_be_file

    for path in paths:
        if path is not None:
            must_be_file(path)


def check_output(path: Path) -> None:
    from ..audio.io import writable_kinds

    if path == STDOUT:
        if sys.stdout.isatty():
            raise ValueError("-o - writes a WAV file into a pipe, and this is a terminal: ... -o - | ffmpeg -i - a.m4a")
        return
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")
    if path.is_dir() or (path.exists() and not os.access(path, os.W_OK)):
        raise ValueError(f"{path}: cannot be written")
    if path.suffix and path.suffix[1:].upper() not in writable_kinds():
        raise ValueError(f"{path}: sound cannot be written as {path.suffix}; .wav, .flac, .ogg and .mp3 are known")
    if not is_device(path):
        check_writable(target_of(path).parent)  # it is written under another name at first


def check_captions(path: Path) -> None:
    from ..captions import check_kind

    check_kind(path.suffix.lower(), path)
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")
    check_writable(target_of(path).parent)


def is_device(path: Path) -> bool:
    """Whether it is a device or a pipe, such as /dev/null, which no file may replace."""
    return path.exists() and not path.is_file()


def target_of(path: Path) -> Path:
    """Returns the file of a link, which shall stay one."""
    return path.resolve() if path.is_symlink() else path


def save(path: Path, wav: Any, rate: int) -> None:
    """Writes the sound, whole or not at all. Standard output, devices and pipes get a WAV file."""
    if path == STDOUT:
        sys.stdout.buffer.write(wav_file(wav, rate))
        sys.stdout.buffer.flush()
    elif is_device(path):
        with naming(path):
            path.write_bytes(wav_file(wav, rate))
    else:
        from ..audio.io import write_wav

        target = target_of(path)
        # Another machine, or container, may write here under the same process id. The ending says the format.
        part = target.with_name(f".{uuid.uuid4().hex}.half{path.suffix or '.wav'}")
        with naming(path), whole(target, part):
            write_wav(part, wav, rate)
    tell(f"{path}: {wav.shape[-1] / rate:.2f} s", path)


def wav_file(wav: Any, rate: int) -> bytes:
    from ..serve.encoders import encode

    return encode("wav", wav[0].numpy(), rate)


def tell(words: object, output: Path) -> None:
    """Prints to standard output, unless the sound goes there."""
    print(words, file=sys.stderr if output == STDOUT else sys.stdout)
