"""Makes a packed folder from a checkpoint folder, atomically."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import __version__
from ..checks import unknown_argument, usable_device
from ..computing import computing
from ..config import MODELS
from ..engine.digits import Digits, half_digits, ignore_deprecation_warning, int4_digits, int8_digits, int8_gpu_digits
from ..engine.half import in_half
from ..engine.linears import own_linears
from ..models.t3 import T3
from ..presets import choose_decoder
from ..switches import SWITCHES
from ..weights.files import CONFIG, OPTIONAL, has_meanflow
from ..weights.load import load_folder, read_config, weight_files
from ..weights.packed import MARKER, Form, Packed, described, is_packed, write_marker, write_rest, write_t3
from .forms import form_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..keywords import EngineKeywords

SAMPLES, SAMPLE = 64, 4096  # places of a file that are hashed, bytes each
UNFINISHED = ".part"


@computing(torch.device("cpu"))
def pack(
    folder: str | Path,
    out: str | Path,
    family: str = "tts",
    device: str = "cpu",
    *,
    t3_file: str | Path | None = None,
    decoder: str | Path | None = None,
    **switches: Unpack[EngineKeywords],
) -> Form:
    """Packs a folder for loading with these `switches` of a constructor (`quantize`, `engine`, ...) on `device`;
    another processor may need another precision."""
    if unknown := sorted(set(switches) - set(SWITCHES)):
        raise TypeError(unknown_argument(unknown[0], SWITCHES, "how weights are kept depends on"))
    folder, out = Path(folder), Path(out).resolve()  # of a link, what it leads to
    if is_packed(folder):
        raise ValueError(f"{folder} is packed already; give the checkpoint that it was made from")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is there, and not empty; a new folder is needed, so that nothing is written over")
    if family not in MODELS:
        raise ValueError(f"family={family!r}: choose one of {', '.join(MODELS)}")
    form = form_of(torch.device(usable_device(device)), read_config(folder, family), dict(switches))
    stored = torch.float32 if form.half else getattr(torch, form.dtype)  # before its linears become digits
    decoder = choose_decoder(switches.get("preset"), decoder, has_meanflow(folder))  # as loading does
    files = weight_files(folder, family, t3_file, decoder)
    source = stamps(folder, files.values())  # ahead of the reading
    parts = load_folder(folder, family, torch.device("cpu"), stored, t3_file, decoder)
    in_half(parts.s3gen.flow, getattr(torch, form.s3gen_dtype))
    ignore_deprecation_warning()
    with whole_folder(out) as part:
        write_t3(part, parts.t3, _digits(parts.t3, form))
        write_rest(part, parts)
        for path in goes_along(folder):
            shutil.copyfile(path, part / path.name)
        made = {path.name: described(path) for path in sorted(part.iterdir())}
        write_marker(part, Packed(form, files["t3"].stem, files["s3gen"].stem, made, source, __version__))
    return form


def _digits(t3: T3, form: Form) -> dict[str, Callable[[Tensor], Digits]]:
    """Returns linear's name -> function that quantizes its weight. Other linears stay unchanged."""
    kinds = {"int8": int8_digits if form.device == "cpu" else int8_gpu_digits, "int4": int4_digits, None: None}
    plain = half_digits if form.half else None
    names = {module: name for name, module in t3.named_modules()}
    by_parents = (([t3], plain), (t3.tfmr.modules(), kinds[form.quantize] or plain))
    out = {names[getattr(*at)]: kind for parents, kind in by_parents for at in own_linears(parents)}
    return {name: kind for name, kind in out.items() if kind is not None}


def goes_along(folder: Path) -> list[Path]:
    """Returns the files that are copied unchanged: vocabularies and the built-in voice."""
    kinds = [path for path in folder.iterdir() if path.suffix in (".json", ".txt") or path.name == OPTIONAL["conds"]]
    return sorted(path for path in kinds if path.is_file() and path.name not in (CONFIG, MARKER))


def stamps(folder: Path, weights: Iterable[Path]) -> dict[str, dict[str, Any] | None]:
    """Returns file name -> its stamp, of all files that a packed folder is made from; None for one that is missing."""
    config = folder / CONFIG
    found: dict[str, dict[str, Any] | None] = {path.name: stamp(path) for path in (*weights, *goes_along(folder))}
    return found | {CONFIG: stamp(config) if config.is_file() else None}


def stamp(path: Path) -> dict[str, Any]:
    """Returns what identifies a file's contents: size, time, and a hash of places all over it. Hashing all of a
    full-size checkpoint takes longer than loading the packed one. Archives and layers of images keep whole seconds."""
    found, sample = path.stat(), hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        for i in range(SAMPLES):
            file.seek(found.st_size * i // SAMPLES)
            sample.update(file.read(SAMPLE))
    return {"bytes": found.st_size, "mtime": int(found.st_mtime), "sample": sample.hexdigest()}


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yields a folder beside `out`, which is renamed to `out` once complete on disk, or deleted after an error. Where
    `out` is there, empty, it may be a volume: then the folder is inside, and what makes it a packed one moves last."""
    name = f".{out.name}.{uuid.uuid4().hex[:8]}{UNFINISHED}"
    there = out.is_dir()
    part = out / name if there else out.with_name(name)
    part.mkdir(parents=True)
    try:
        yield part
        for path in part.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        if there:
            for path in sorted(part.iterdir(), key=lambda path: path.name == MARKER):
                path.rename(out / path.name)
            part.rmdir()
        else:
            part.rename(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
