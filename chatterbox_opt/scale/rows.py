"""Reads a table of texts from jsonl, csv or parquet. A row is a text and how to speak it."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import check_readable

TAKES = ("takes", "retries")
WHOLE = ("seed", "top_k", "max_new_tokens", "n_cfm_timesteps", "max_chars", *TAKES)
REAL = ("exaggeration", "cfg_weight", "temperature", "top_p", "min_p", "repetition_penalty")
OPTIONS = ("language_id", "spoken", "pronounce", *WHOLE, *REAL)
COLUMNS = ("text", "id", "voice", *OPTIONS, "options")
KINDS = (".jsonl", ".csv", ".parquet")
LONGEST_ID = 200  # a file's name has 255 bytes
NOT_IN_IDS = '\\:*?"<>|'  # no file's name has them on Windows
LONGEST_CELL = 10_000_000  # characters of a CSV file's cell; the module's own limit is 131,072
PANDAS_INDEX = "__index_level_"  # begins the name of an index in parquet; in CSV its name is empty
INEXACT = 2**53  # from here on a float may stand for another whole number than was given


@dataclass(frozen=True)
class Row:
    """A row of the table: what one file will say."""

    id: str
    number: int  # in the table, from 1
    text: str
    voice: str | None = None  # as in the table; None: the model's own
    options: dict[str, Any] = field(default_factory=dict)  # those of submit(), always a seed, and TAKES
    recording: str | None = None  # absolute path of the voice: a recording or a saved voice

    @property
    def several_takes(self) -> bool:
        return self.options.get("takes", 1) != 1 or self.options.get("retries", 0) != 0

    @property
    def digest(self) -> str:
        """Returns a hash of text, voice and options; the number and the id do not count."""
        content = json.dumps([self.text, self.voice, self.options], sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class BadRow:
    id: str
    number: int
    reason: str


def read_rows(path: Path, common: dict[str, Any] | None = None) -> list[Row | BadRow]:
    """Returns the rows in the table's order. `common`: values of columns that a row leaves empty. A row without a seed
    gets one from its content. Raises ValueError if the whole table is of no use, as when two rows have one id."""
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise ValueError(f"{path}: a table of texts ends in {', '.join(KINDS)}")
    check_readable(path)
    read = {".jsonl": _from_jsonl, ".csv": _from_csv, ".parquet": _from_parquet}[kind]
    rows = [_row(number, given, common or {}, path.parent) for number, given in enumerate(read(path), 1)]
    _check_ids(path, rows)
    return rows


def _check_ids(path: Path, rows: list[Row | BadRow]) -> None:
    """Raises ValueError if two rows would have one file, as ids that differ in case have on Windows and macOS."""
    seen: dict[str, Row | BadRow] = {}
    for row in rows:
        first = seen.setdefault(row.id.casefold(), row)
        if first is not row:
            both = f"{path}: rows {first.number} and {row.number} have"
            if first.id == row.id:
                raise ValueError(f"{both} one id, {row.id!r}; each is a file's name")
            raise ValueError(f"{both} ids that differ in case only, {first.id!r} and {row.id!r}; each is a file's name")


# ---- kinds of tables. Each yields a dict per row, or the reason, a str, why there is none -------------


def _from_jsonl(path: Path) -> Iterator[Any]:
    with open(path, "rb") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                given = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
                yield f"no JSON ({error})"
                continue
            yield given if isinstance(given, dict) else "no JSON object"


def _from_csv(path: Path) -> Iterator[Any]:
    csv.field_size_limit(LONGEST_CELL)
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        begun = 1  # line of the row that is being read
        try:
            if "text" not in (reader.fieldnames or ()):
                raise ValueError(f"{path}: its first line names no column 'text'")
            begun = reader.line_num + 1
            for cells in reader:
                if None in cells:
                    yield "more cells than columns"
                else:
                    yield {name: _number(name, cell) for name, cell in cells.items() if cell}
                begun = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(f"{path}: row at line {begun}: {error}; is a quote left open there?") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: it is not UTF-8 ({error}); save it as UTF-8") from error


def _number(name: str, cell: str) -> Any:
    """Returns the cell as a number, or as it is; _checked() reports wrong ones, as for the other kinds of tables."""
    kinds = (int, float) if name in WHOLE else (float,) if name in REAL else ()
    for kind in kinds:
        with suppress(ValueError):
            return kind(cell)
    return cell


def _from_parquet(path: Path) -> Iterator[Any]:
    module = parquet_module(path)
    from pyarrow import ArrowException

    try:
        with module.ParquetFile(path) as table:
            if "text" not in table.schema_arrow.names:
                raise ValueError(f"{path}: it has no column 'text'")
            for batch in table.iter_batches():
                yield from _cells_of(batch)
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path}: this is no parquet file, or it is damaged ({error})") from error


def _cells_of(batch: Any) -> list[Any]:
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):  # a text that is not UTF-8, or a date that Python does not have
        return [_cells_alone(batch.slice(start, 1)) for start in range(batch.num_rows)]


def _cells_alone(row: Any) -> Any:
    try:
        return row.to_pylist()[0]
    except (ValueError, OverflowError) as error:
        return f"it cannot be read ({error})"


def parquet_module(what: Any) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(f"{what}: parquet needs the package pyarrow: pip install 'chatterbox-opt[parquet]'") from error
    return parquet


# ---- checks of a row -----------------------------------------------------------------------------------


def name_of(number: int) -> str:
    """Returns the id of a row that has none, or of which none can be read."""
    return f"{number:07d}"


def _row(number: int, given: Any, common: dict[str, Any], folder: Path) -> Row | BadRow:
    name = name_of(number)
    if isinstance(given, str):
        return BadRow(name, number, given)
    try:
        given = {column: value for column, value in _set(given).items() if not _is_index(column)}
        name = _checked_id(given.pop("id", name))
        more = given.pop("options", {})
        given |= _set(dict(json.loads(more) if isinstance(more, str) else more))
        given = common | given
        return _checked(name, number, given, folder)
    except (ValueError, TypeError, RecursionError) as error:  # the last: of JSON that is nested too deeply
        return BadRow(name, number, str(error))


def _set(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields that have a value: parquet gives each row all fields of a struct, and pandas writes NaN."""
    return {key: value for key, value in fields.items() if value is not None and not _is_nan(value)}


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _is_index(column: str) -> bool:
    """Whether it is the index without a name of a pandas table, which says nothing about the speech."""
    return not column or column.startswith(PANDAS_INDEX)


def _whole(value: Any) -> Any:
    """Returns the whole number that a float holds, or the value as it is: where a value is missing, pandas makes floats
    of a column's whole numbers."""
    holds_one = isinstance(value, float) and value.is_integer() and abs(value) < INEXACT
    return int(value) if holds_one else value


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that is larger than any float
        return False


def _checked(name: str, number: int, given: dict[str, Any], folder: Path) -> Row:
    if unknown := sorted(map(repr, set(given) - {"text", "voice", *OPTIONS})):
        raise ValueError(f"unknown column {', '.join(unknown)}; known are {', '.join(COLUMNS)}")
    text, voice = given.pop("text", None), given.pop("voice", None)
    if not isinstance(text, str) or not text.strip():
        raise ValueError("there is no text to say")
    if voice is not None and not (isinstance(voice, str) and voice):
        raise ValueError(f"voice={voice!r}: the path of a recording or of a saved voice is needed")
    for key in ("spoken", "pronounce"):
        if key in given:
            given[key] = _checked_reading(key, given[key])
    given |= {key: _whole(given[key]) for key in WHOLE if key in given}
    for key, value in given.items():
        if key in ("spoken", "pronounce"):
            continue
        wanted: Any = str if key == "language_id" else int if key in WHOLE else (int, float)
        if isinstance(value, bool) or not isinstance(value, wanted) or (key in REAL and not _is_finite(value)):
            what = {str: "a name such as fr", int: "a whole number"}.get(wanted, "a number")
            raise ValueError(f"{key}={value!r}: {what} is needed")
    if "seed" not in given:
        content = Row(name, number, text, voice, given).digest
        given["seed"] = int(content[:15], 16)  # 60 bits: fits an int64, which readers of JSON tables use
    return Row(name, number, text, voice, given, str((folder / voice).absolute()) if voice else None)


def _checked_reading(key: str, value: Any) -> Any:
    """Returns `spoken` or `pronounce`, which in a CSV file are both text."""
    if isinstance(value, str) and value.lower() in ("true", "false"):
        value = value.lower() == "true"
    if isinstance(value, str) and key == "pronounce":
        with suppress(ValueError):
            value = json.loads(value)
    if key == "spoken" and not isinstance(value, (bool, str)):
        raise ValueError(f"spoken={value!r}: true, false or a library's name is needed")
    if key == "pronounce" and not isinstance(value, dict):
        raise ValueError(f'pronounce={value!r}: words and their respellings are needed, such as {{"SQL": "sequel"}}')
    return _set(value) if key == "pronounce" else value


def _checked_id(name: Any) -> str:
    """Returns an id that is a safe file name, in subfolders if it has slashes, always inside the output folder."""
    name = _whole(name)
    name = str(name) if isinstance(name, int) and not isinstance(name, bool) else name
    if not isinstance(name, str) or not 0 < len(name.encode(errors="replace")) <= LONGEST_ID:
        raise ValueError(f"id={name!r}: 1 to {LONGEST_ID} letters, digits and the like are needed")
    if not name.isprintable() or any(character in NOT_IN_IDS for character in name):
        raise ValueError(f"id={name!r}: it names a file: no {' '.join(NOT_IN_IDS)} or control characters may be in it")
    if any(part[:1] in ("", ".") for part in name.split("/")):
        raise ValueError(f"id={name!r}: it names a file: no part between slashes may be empty or begin with a dot")
    return name
