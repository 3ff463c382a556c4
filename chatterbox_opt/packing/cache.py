"""Packed checkpoints in the user's cache folder: made at a first start, taken at every other.

An entry belongs to the files it was made from, by their real paths, and to a form. It is used as long as these files
have the sizes and times that they had, and is made anew when they have not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ..switches import TOGGLES
from ..weights.load import existing, weight_files
from ..weights.packed import is_packed, read_packed
from .forms import form_of
from .make import UNFINISHED, goes_along, pack, stamp

logger = logging.getLogger(__name__)

ABANDONED = 3600  # s after which an unfinished entry is nobody's any more


def cached(
    folder: str | Path,
    family: str,
    device: torch.device,
    t3_file: str | Path | None,
    decoder: str | Path | None,
    options: dict[str, Any],
    root: str | Path | bool,
) -> Path | None:
    """The entry for this checkpoint, below the folder `root` or in the user's cache. None where there can be none: the
    folder is packed, or the cache cannot be written."""
    folder = existing(folder)
    if is_packed(folder):
        return None
    form = form_of(device, options)
    files = [*weight_files(folder, family, t3_file, decoder).values(), *goes_along(folder)]
    belongs = [family, sorted(str(path.resolve()) for path in files), dataclasses.astuple(form)]
    key = hashlib.sha256(json.dumps(belongs).encode()).hexdigest()[:16]
    root = default_root() if root is True else Path(root)
    entry = root / f"{family}-{form.quantize or form.dtype}-{key}"
    if _usable(entry, files):
        return entry
    how = {name: options[name] for name in TOGGLES if name in options}
    try:
        _sweep(entry)
        pack(folder, entry, family, str(device), t3_file=t3_file, decoder=decoder, **how)
    except OSError as error:
        if not _usable(entry, files):  # another process may have been faster
            logger.warning("%s: the packed checkpoint could not be kept (%s); going on without", entry, error)
            return None
    return entry


def default_root() -> Path:
    if found := os.environ.get("CHATTERBOX_OPT_CACHE"):
        return Path(found)
    if sys.platform == "win32" and (found := os.environ.get("LOCALAPPDATA")):
        return Path(found) / "chatterbox_opt" / "packed"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chatterbox_opt" / "packed"


def _usable(entry: Path, files: list[Path]) -> bool:
    if not entry.exists():
        return False
    try:
        source = read_packed(entry).source
        changed = [path for path in files if not stamp(path).items() <= source.get(path.name, {}).items()]
        why = f"{changed[0]} has changed since" if changed else None
    except (ValueError, OSError) as error:
        why = str(error)
    if why:
        logger.warning("%s is made anew: %s", entry, why)
    return why is None


def _sweep(entry: Path) -> None:
    """What is of no use goes: the entry, and what a process that was ended left unfinished."""
    shutil.rmtree(entry, ignore_errors=True)
    for part in entry.parent.glob(f".*{UNFINISHED}"):
        if time.time() - part.stat().st_mtime > ABANDONED:
            shutil.rmtree(part, ignore_errors=True)
