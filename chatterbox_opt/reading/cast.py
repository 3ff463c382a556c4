"""The cast of a script: voice, seed and options per name, from a TOML file with one table per name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..files import tables_of
from ..options import SamplingOptions

NARRATOR = "narrator"  # who speaks what has no name
_ENTRIES = ("voice", "seed", "language")
_OPTIONS = {"exaggeration", "spoken", "pronounce", "takes", "retries", *(f.name for f in fields(SamplingOptions))}


@dataclass(frozen=True)
class Role:
    voice: Any = None  # a path, or what prepare_voice() made; None: the model's own
    seed: int = 0
    language: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # exaggeration, temperature, takes and so on


class Cast(dict[str, Role]):
    """Roles by name. `given`: whether somebody named them; a lone --voice is no list of who may speak."""

    given = True


def load_cast(path: str | Path) -> Cast:
    """Reads a TOML file, to which the paths in it are relative. Raises ValueError for unknown entries."""
    path = Path(path)
    return Cast((name, _table(f"{path}: [{name}]", table, path.parent)) for name, table in tables_of(path).items())


def cast_of(cast: Any) -> Cast:
    """Returns roles by name from a file's path, or from a mapping of names to roles, voices, or mappings with the
    entries of a file's table; none from None. Raises ValueError for anything else."""
    if cast is None:
        none = Cast()
        none.given = False
        return none
    if isinstance(cast, Cast):
        return cast
    if isinstance(cast, Mapping):
        return Cast((name, _given(name, role)) for name, role in cast.items())
    if isinstance(cast, (str, Path)):
        return load_cast(cast)
    raise ValueError(f"cast={cast!r}: a TOML file is needed, or a mapping from names to roles or voices")


def _given(name: Any, role: Any) -> Role:
    where = f"cast[{name!r}]"
    if not isinstance(name, str):
        raise ValueError(f"{where}: a name is a text")
    if isinstance(role, Role):
        return role
    if not isinstance(role, Mapping):
        return Role(_checked(where, role))
    table = dict(role)
    voice = _checked(where, table.pop("voice", None))
    if isinstance(voice, str):
        return _table(where, table | {"voice": voice}, Path())
    return replace(_table(where, table, Path()), voice=voice)


def _checked(where: str, voice: Any) -> Any:
    if voice is None or isinstance(voice, (str, Path)) or hasattr(voice, "t3"):
        return voice
    raise ValueError(f"{where}: {voice!r} is no voice: a path is needed, or what prepare_voice() made")


def _table(where: str, table: Any, folder: Path) -> Role:
    if not isinstance(table, dict):
        raise ValueError(f"{where}: a table is needed, such as voice = \"anna.wav\"")
    table = dict(table)
    voice, seed, language = (table.pop(name, None) for name in _ENTRIES)
    if unknown := sorted(set(table) - _OPTIONS):
        known = ", ".join(sorted({*_ENTRIES} | _OPTIONS))
        raise ValueError(f"{where}: unknown {', '.join(map(str, unknown))}; known are {known}")
    for name, value, kind in zip(_ENTRIES, (voice, seed, language), (str, int, str)):
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{where}: {name} = {value!r} is not a {kind.__name__}")
    if isinstance(table.get("pronounce"), str):
        table["pronounce"] = folder / table["pronounce"]
    return Role(folder / voice if voice else None, seed or 0, language, table)
