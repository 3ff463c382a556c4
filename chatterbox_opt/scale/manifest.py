"""manifest.jsonl and failures.jsonl of an output folder: a line for each row that was made or that failed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..files import PART, lock, write_whole
from .rows import BadRow, Row

MADE, FAILED, SETTINGS = "manifest.jsonl", "failures.jsonl", "batch.json"


class Manifest:
    """Has one writer at a time. A line of the manifest is written after its file, so the file that it names exists."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        """`settings`: the `format`, and all else that changes every row. Raises ValueError if the folder has others."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._made = open(folder / MADE, "ab+")  # noqa: SIM115  closed by close()
        try:
            lock(self._made, folder)
            _check_settings(folder / SETTINGS, settings)
            self.made = {record["id"]: record for record in _whole_lines(self._made)}
            self._failed = open(folder / FAILED, "ab+")  # noqa: SIM115
            self.failed = {record["id"]: record for record in _whole_lines(self._failed)}
        except BaseException:
            self._made.close()
            raise
        for name in (f"*.{settings['format']}", "shard-*", FAILED):  # what a killed run was writing
            for path in folder.rglob(name + PART):
                path.unlink(missing_ok=True)

    def left(self, rows: Iterable[Row]) -> list[Row]:
        """Returns the rows that are not made yet. Raises ValueError if a row's id was made from another text."""
        out = []
        for row in rows:
            made = self.made.get(row.id)
            if made is None:
                out.append(row)
            elif made["digest"] != row.digest:
                message = f"{row.id!r} was made from another text, voice or option than row {row.number} has"
                raise ValueError(f"{self.folder}: {message}; give another folder")
        return out

    def keep_failures_of(self, rows: Iterable[Row | BadRow]) -> None:
        """Drops the failures of all other rows: the table may have been mended since an earlier run."""
        ids = {row.id for row in rows}
        self.failed = {name: record for name, record in self.failed.items() if name in ids}

    def add(self, records: Iterable[dict[str, Any]]) -> None:
        for record in records:
            self._made.write(_line(record))
            self.made[record["id"]] = record
        self._made.flush()

    def fail(self, row: Row | BadRow, reason: str) -> None:
        record = {"id": row.id, "row": row.number, "reason": reason}
        self._failed.write(_line(record))
        self._failed.flush()
        self.failed[row.id] = record

    def close(self) -> None:
        """Drops the failures of rows that were made later."""
        self._failed.close()
        failed = [record for name, record in self.failed.items() if name not in self.made]
        write_whole(self.folder / FAILED, b"".join(map(_line, failed)))
        self._made.close()


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _whole_lines(file: Any) -> list[dict[str, Any]]:
    """Returns the records. A last line that a killed run left unfinished is cut off the file."""
    file.seek(0)
    data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    file.truncate(len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Stores them in a new folder; compares them in an old one."""
    if not path.exists():
        write_whole(path, _line(settings))
        return
    before = json.loads(path.read_bytes())
    changed = sorted(key for key in before.keys() | settings.keys() if before.get(key) != settings.get(key))
    if changed:
        was = ", ".join(f"{key}={before.get(key)!r}" for key in changed)
        raise ValueError(f"{path.parent}: was begun with {was}; continue with that, or give another folder")
