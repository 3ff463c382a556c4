"""Finds the files of a checkpoint in its folder or beside it."""

from __future__ import annotations

from pathlib import Path

from . import layout, safefile
from .files import FILES, MEANFLOW, decoder_file, has_meanflow


def find_t3(folder: Path, usual: str, chosen: str | Path | None) -> Path:
    """Returns the file asked for, else the family's usual one, else the only one there is, as packs choose names."""
    if chosen:
        return find(folder, str(chosen))
    others = sorted(folder.glob("t3_*.safetensors"))
    own = any((folder / usual).with_suffix(suffix).is_file() for suffix in (".safetensors", ".pt"))
    return others[0] if len(others) == 1 and not own else find(folder, usual)


def find_decoder(folder: Path, decoder: str | Path | None, family: str) -> Path:
    name = decoder_file(decoder, FILES[family]["s3gen"])
    elsewhere = decoder != "meanflow" and Path(name).is_file()  # as a path of this name, from where the process is
    if name == MEANFLOW != FILES[family]["s3gen"] and not (has_meanflow(folder) or elsewhere):
        raise FileNotFoundError(
            f"decoder='meanflow' needs {MEANFLOW}, which Turbo is published with, in {folder}; from_pretrained() "
            f"fetches it, and decoder= takes its path as well; the folder holds {listing(folder)}"
        )
    return find(folder, name)


def s3gen_beside(decoder: Path) -> Path | None:
    """Returns the S3Gen file beside a file that holds only an estimator."""
    names = safefile.read_header(decoder) if decoder.suffix == ".safetensors" else ()
    alone = names and all(name.startswith(layout.ESTIMATOR) for name in names)
    return find(decoder.parent, FILES["tts"]["s3gen"]) if alone else None


def find(folder: Path, name: str) -> Path:
    """Returns the file of that name, or else the same as .pt, or as safetensors."""
    here = name.startswith(("./", "../")) and Path(name).is_file()  # of the process, not of the folder
    path = Path(name) if here or Path(name).is_absolute() else folder / name
    other = {".safetensors": ".pt", ".pt": ".safetensors"}.get(path.suffix)
    twins = [path, path.with_suffix(other)] if other else [path]
    for candidate in twins:
        if candidate.is_file():
            return candidate
    if Path(name).is_file():
        return Path(name)
    raise FileNotFoundError(f"{folder} has no {' or '.join(t.name for t in twins)}; it holds {listing(folder)}")


def listing(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir())
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "nothing"
