"""The cast of a script: voice, seed and options per name, from a TOML file with one table per name."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..files import text_of
from ..options import SamplingOptions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NARRATOR = "narrator"  # who speaks what has no name
_OPTIONS = {"exaggeration", "spoken", "pronounce", "takes", "retries", *(f.name for f in fields(SamplingOptions))}


@dataclass(frozen=True)
class Role:
    voice: Any = None  # a path, or what prepare_voice() made; None: the model's own
    seed: int = 0
    language: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # exaggeration, temperature, takes and so on


def load_cast(path: str | Path) -> dict[str, Role]:
    """Reads a TOML file, to which the paths in it are relative. Raises ValueError for unknown entries."""
    path = Path(path)
    text = text_of(path)
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    return {name: _role(f"{path}: [{name}]", table, path.parent) for name, table in tables.items()}


def cast_of(cast: Any) -> dict[str, Role]:
    """Returns roles by name from a file's path, or from a mapping of names to roles or voices; none from None."""
    if cast is None:
        return {}
    if isinstance(cast, Mapping):
        return {name: role if isinstance(role, Role) else Role(role) for name, role in cast.items()}
    return load_cast(cast)


def _role(where: str, table: Any, folder: Path) -> Role:
    if not isinstance(table, dict):
        raise ValueError(f"{where}: a table is needed, such as voice = \"anna.wav\"")
    table = dict(table)
    voice, seed, language = (table.pop(name, None) for name in ("voice", "seed", "language"))
    if unknown := sorted(set(table) - _OPTIONS):
        known = ", ".join(sorted({"voice", "seed", "language"} | _OPTIONS))
        raise ValueError(f"{where}: unknown {', '.join(unknown)}; known are {known}")
    for name, value, kind in (("voice", voice, str), ("seed", seed, int), ("language", language, str)):
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{where}: {name} = {value!r} is not a {kind.__name__}")
    if isinstance(table.get("pronounce"), str):
        table["pronounce"] = folder / table["pronounce"]
    return Role(folder / voice if voice else None, seed or 0, language, table)
