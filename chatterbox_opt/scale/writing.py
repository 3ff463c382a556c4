"""Writes speech into an output folder: a file for each row, or tar (WebDataset) or parquet files of many rows."""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any, Protocol

from ..files import write_whole
from .manifest import Manifest

FORMATS = ("flac", "mp3", "wav")
Speech = tuple[dict[str, Any], bytes]  # its record, which is its manifest line without the file's name; encoded sound


class Writer(Protocol):
    def add(self, record: dict[str, Any], data: bytes) -> None:
        """Takes the record and the encoded sound of a row."""

    def close(self) -> None:
        """Writes what is still held."""


class Files:
    """ID.flac, which gets its name when it is complete, and then its line of the manifest."""

    def __init__(self, manifest: Manifest, kind: str) -> None:
        self.manifest, self.kind = manifest, kind

    def add(self, record: dict[str, Any], data: bytes) -> None:
        name = f"{record['id']}.{self.kind}"
        path = self.manifest.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
        self.manifest.add([{**record, "file": name}])

    def close(self) -> None:
        pass


class Shards:
    """shard-000000.tar and so on, of `size` rows each. If the run is killed, the shard that was not full is lost, and
    its rows are made again."""

    def __init__(self, manifest: Manifest, kind: str, size: int, packing: str) -> None:
        self.manifest, self.kind, self.size, self.packing = manifest, kind, size, packing
        self.next = len({record["file"] for record in manifest.made.values()})
        self.waiting: list[Speech] = []

    def add(self, record: dict[str, Any], data: bytes) -> None:
        self.waiting.append((record, data))
        if len(self.waiting) >= self.size:
            self.close()

    def close(self) -> None:
        if not self.waiting:
            return
        name = f"shard-{self.next:06d}.{self.packing}"
        self.waiting.sort(key=lambda speech: speech[0]["id"])
        write_whole(self.manifest.folder / name, PACKINGS[self.packing](self.waiting, self.kind))
        self.manifest.add({**record, "file": name} for record, _ in self.waiting)
        self.next, self.waiting = self.next + 1, []


def _tar(speeches: list[Speech], kind: str) -> bytes:
    """Returns a tar file with ID.flac and ID.json of each speech."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for record, data in speeches:
            _member(tar, f"{record['id']}.{kind}", data)
            _member(tar, f"{record['id']}.json", json.dumps(record).encode())
    return file.getvalue()


def _member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _parquet(speeches: list[Speech], kind: str) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    columns = {name: [record[name] for record, _ in speeches] for name in ("id", "seed", "duration", "tokens")}
    columns["seed"] = [(seed + 2**63) % 2**64 - 2**63 for seed in columns["seed"]]  # the same seed, in an int64
    columns["record"] = [json.dumps(record) for record, _ in speeches]  # as text: a judge may add fields to some
    columns[kind] = pa.array([data for _, data in speeches], pa.large_binary())
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file, row_group_size=100)
    return file.getvalue()


PACKINGS = {"tar": _tar, "parquet": _parquet}


def writer(manifest: Manifest, kind: str, shard: int | None = None, packing: str = "tar") -> Writer:
    return Files(manifest, kind) if shard is None else Shards(manifest, kind, shard, packing)
