"""A checkpoint folder -> a packed one, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..checks import usable_device
from ..engine.digits import Digits, half_digits, int4_digits, int8_digits, int8_gpu_digits, unannounced
from ..engine.linears import own_linears
from ..models.t3 import T3
from ..switches import TOGGLES
from ..weights.files import OPTIONAL
from ..weights.load import load_folder, weight_files
from ..weights.packed import MARKER, NAMES, Form, Packed, described, is_packed, write_marker, write_rest, write_t3
from .forms import form_of

CHUNK = 1 << 22  # bytes hashed at a time
UNFINISHED = ".part"


def pack(
    folder: str | Path,
    out: str | Path,
    family: str = "tts",
    device: str = "cpu",
    *,
    t3_file: str | Path | None = None,
    decoder: str | Path | None = None,
    **options: Any,
) -> Form:
    """`options` are the constructor's (`quantize`, `engine`, ...): those that the packed folder is to be loaded with.
    `device`: the one it is to be loaded on; another processor may want another precision."""
    if unknown := sorted(set(options) - set(TOGGLES)):
        raise TypeError(f"unknown argument {', '.join(unknown)}; how weights are kept depends on {', '.join(TOGGLES)}")
    folder, out = Path(folder), Path(out)
    if is_packed(folder):
        raise ValueError(f"{folder} is packed already; give the checkpoint that it was made from")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there, and not empty; a new folder is needed, so that nothing is written over")
    form = form_of(torch.device(usable_device(device)), options)
    stored = torch.float32 if form.half else getattr(torch, form.dtype)
    files = weight_files(folder, family, t3_file, decoder)
    source = {path: stamp(path) for path in [*files.values(), *goes_along(folder)]}  # as they are ahead of the reading
    parts = load_folder(folder, family, torch.device("cpu"), stored, t3_file, decoder)
    with whole_folder(out) as part, unannounced():
        write_t3(part, parts.t3, _digits(parts.t3, form))
        write_rest(part, parts)
        for path in goes_along(folder):
            shutil.copyfile(path, part / path.name)
        made = {name: described(part / name) for name in NAMES.values()}
        known = {path.name: {**seen, "sha256": _sha256(path)} for path, seen in source.items()}
        write_marker(part, Packed(form, files["t3"].name, files["s3gen"].name, made, known, __version__))
    return form


def _digits(t3: T3, form: Form) -> dict[str, Callable[[Tensor], Digits]]:
    """What is to be stored of which linear. The others stay as they are."""
    kinds = {"int8": int8_digits if form.device == "cpu" else int8_gpu_digits, "int4": int4_digits, None: None}
    plain = half_digits if form.half else None
    names = {module: name for name, module in t3.named_modules()}
    by_parents = (([t3], plain), (t3.tfmr.modules(), kinds[form.quantize] or plain))
    out = {names[getattr(*at)]: kind for parents, kind in by_parents for at in own_linears(parents)}
    return {name: kind for name, kind in out.items() if kind is not None}


def goes_along(folder: Path) -> list[Path]:
    """What a packed folder has unchanged: vocabularies and the built-in voice."""
    kinds = [path for path in folder.iterdir() if path.suffix in (".json", ".txt") or path.name == OPTIONAL["conds"]]
    return sorted(path for path in kinds if path.is_file() and path.name not in ("config.json", MARKER))


def stamp(path: Path) -> dict[str, int]:
    """What tells, without reading it, that a file is the one it was."""
    found = path.stat()
    return {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns}


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            found.update(chunk)
    return found.hexdigest()


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` when all of it is on the disk, or goes."""
    part = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}{UNFINISHED}")
    part.mkdir(parents=True)
    try:
        yield part
        for path in part.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        if out.is_dir():
            out.rmdir()
        part.rename(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
