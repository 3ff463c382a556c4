"""What was made, a line each, and what was not: manifest.jsonl and failures.jsonl of an output folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..files import PART, write_whole
from .rows import BadRow, Row

MADE, FAILED, SETTINGS = "manifest.jsonl", "failures.jsonl", "batch.json"


class Manifest:
    """Of one writer at a time. A line of the manifest is written behind its file, so what it names is there."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        """`settings`: the `format`, and whatever else changes all rows; a folder keeps those that it was begun with."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._made = open(folder / MADE, "ab+")  # noqa: SIM115  closed by close()
        try:
            _lock(self._made, folder)
            _same_settings(folder / SETTINGS, settings)
            self.made = {record["id"]: record for record in _whole_lines(self._made)}
            self._failed = open(folder / FAILED, "ab+")  # noqa: SIM115
            self.failed = {record["id"]: record for record in _whole_lines(self._failed)}
        except BaseException:
            self._made.close()
            raise
        for name in (f"*.{settings['format']}", "shard-*", FAILED):  # of a run that was ended in mid-write
            for path in folder.rglob(name + PART):
                path.unlink(missing_ok=True)

    def left(self, rows: Iterable[Row]) -> list[Row]:
        """Those that are not made yet. Raises where an id stands for another text than it did."""
        out = []
        for row in rows:
            made = self.made.get(row.id)
            if made is None:
                out.append(row)
            elif made["digest"] != row.digest:
                message = f"{row.id!r} was made from another text, voice or option than row {row.number} has"
                raise ValueError(f"{self.folder}: {message}; give another folder")
        return out

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
        """What failed once and was made later is no failure any more."""
        self._failed.close()
        still = [record for name, record in self.failed.items() if name not in self.made]
        write_whole(self.folder / FAILED, b"".join(map(_line, still)))
        self._made.close()


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _whole_lines(file: Any) -> list[dict[str, Any]]:
    """The end of a line that a killed run left unfinished is cut off."""
    file.seek(0)
    data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    file.truncate(len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def _same_settings(path: Path, settings: dict[str, Any]) -> None:
    if not path.exists():
        write_whole(path, _line(settings))
        return
    before = json.loads(path.read_bytes())
    changed = sorted(key for key in before.keys() | settings.keys() if before.get(key) != settings.get(key))
    if changed:
        was = ", ".join(f"{key}={before.get(key)!r}" for key in changed)
        raise ValueError(f"{path.parent}: was begun with {was}; go on with that, or give another folder")


def _lock(file: Any, folder: Path) -> None:
    """Given back by the system, however the process ends. Where it has no such locks, nothing is checked."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(f"{folder}: another run is writing into it") from error
