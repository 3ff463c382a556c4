"""Packed checkpoints in the user's cache folder: made at the first start, loaded at later ones.

The key of an entry is the real paths of the files it was made from, and its form. It is used while these files are
unchanged (see make.stamps()) and the entry is intact; otherwise it is made again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch

from ..files import cache_folder
from ..weights.load import existing, read_config, weight_files
from ..weights.packed import Packed, read_packed
from .forms import form_of
from .make import UNFINISHED, goes_along, pack, stamps

logger = logging.getLogger(__name__)

ABANDONED = 3600  # s after which an unfinished entry is deleted


def cached(
    folder: Path,
    family: str,
    device: torch.device,
    t3_file: str | Path | None,
    decoder: str | Path | None,
    switches: dict[str, Any],
    root: Literal[True] | str | Path,
) -> tuple[Path, Packed] | None:
    """Returns the entry for this checkpoint, in the folder `root` or in the user's cache; None if the cache is not
    writable."""
    form = form_of(device, read_config(folder, family), switches)
    weights = weight_files(existing(folder), family, t3_file, decoder).values()
    files = sorted(str(path.resolve()) for path in (*weights, *goes_along(folder)))
    belongs = [family, files, dataclasses.astuple(form)]
    key = hashlib.sha256(json.dumps(belongs).encode()).hexdigest()[:16]
    root = cache_folder() / "packed" if root is True else Path(root)
    entry = root / f"{family}-{form.quantize or form.dtype}-{key}"
    _delete_abandoned(root)
    source = stamps(folder, weights)
    if packed := _usable(entry, source):
        return entry, packed
    why: object = "the checkpoint has changed meanwhile"
    try:
        if entry.exists():
            shutil.rmtree(entry)
        pack(folder, entry, family, str(device), t3_file=t3_file, decoder=decoder, **switches)
    except OSError as error:
        why = error
    if packed := _usable(entry, source):  # also if another process was faster
        return entry, packed
    logger.warning("%s: the packed checkpoint could not be kept (%s); going on without", entry, why)
    return None


def _usable(entry: Path, source: dict[str, Any]) -> Packed | None:
    try:
        packed = read_packed(entry)
        changed = [name for name in source if packed.source.get(name) != source[name]]
        if not changed:
            return packed
        why: object = f"{changed[0]} has changed since"
    except (FileNotFoundError, PermissionError):  # there is none, or none that may be read
        return None
    except (ValueError, OSError) as error:
        why = error
    logger.warning("%s is made anew: %s", entry, why)
    return None


def _delete_abandoned(root: Path) -> None:
    """Deletes unfinished entries of processes that were killed."""
    with suppress(OSError):
        for part in root.glob(f".*{UNFINISHED}"):
            if time.time() - part.stat().st_mtime > ABANDONED:
                shutil.rmtree(part, ignore_errors=True)
