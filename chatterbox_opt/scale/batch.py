"""`chatterbox-opt batch`: speaks a table into an output folder, and continues a run that was interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import naming
from ..serve.encoders import missing
from .manifest import Manifest
from .rows import BadRow, Row, parquet_module
from .speaking import Failed, Made
from .writing import FORMATS, PACKINGS, Writer, writer

Outcomes = Callable[[Sequence[Row]], Iterable[Made | Failed]]  # speaks rows, on this machine or on others


@dataclass
class Summary:
    rows: int
    before: int  # made by earlier runs
    made: int = 0
    failed: int = 0
    seconds: float = 0.0  # of speech made by this run


def speak_table(
    rows: Sequence[Row | BadRow], folder: Path, outcomes: Outcomes, kind: str = "flac", *, shard: int | None = None,
    packing: str = "tar", settings: dict[str, Any] | None = None, verbose: bool = True,
) -> Summary:
    """`outcomes` is called with the rows that are not made yet, the longest texts first: rows that are spoken side by
    side are about equally long, the engine reserves its memory once, and no long row is left for the end. `kind`: the
    format. `shard`: rows per tar file, or per file of another `packing`. `settings`: what a run that continues another
    must have in common with it."""
    if kind not in FORMATS:
        raise ValueError(f"format={kind!r}: choose one of {', '.join(FORMATS)}")
    if shard is not None and shard < 1:
        raise ValueError(f"shard={shard}: a number of rows is needed")
    if packing not in PACKINGS:
        raise ValueError(f"packing={packing!r}: choose one of {', '.join(PACKINGS)}")
    if packing == "parquet":
        if shard is None:
            raise ValueError("parquet holds many speeches: say how many rows a file has, by --shard")
        parquet_module("shards in parquet")
    if reason := missing(kind):
        raise ValueError(reason.replace("response_format", "format"))
    common = {**(settings or {}), "format": kind, "shard": shard}
    common |= {} if packing == "tar" else {"packing": packing}
    with naming(folder), closing(Manifest(folder, common)) as manifest:
        bad = [row for row in rows if isinstance(row, BadRow)]
        left = manifest.left(row for row in rows if isinstance(row, Row))
        manifest.keep_failures_of(rows)
        if shard is not None and packing == "tar":  # WebDataset takes all that follows a dot for the suffix
            bad += [BadRow(row.id, row.number, f"id={row.id!r}: no dots in tar files") for row in left if "." in row.id]
            left = [row for row in left if "." not in row.id]
        for row in bad:
            manifest.fail(row, row.reason)
        summary = Summary(len(rows), len(rows) - len(left) - len(bad), failed=len(bad))
        with closing(writer(manifest, kind, shard, packing)) as output:
            if left:
                left.sort(key=lambda row: (-len(row.text), row.number))
                _write(_with_bar(outcomes(left), summary, verbose), manifest, output, summary)
    return summary


def _write(outcomes: Iterable[Made | Failed], manifest: Manifest, output: Writer, summary: Summary) -> None:
    for outcome in outcomes:
        reason = outcome.reason if isinstance(outcome, Failed) else None
        if isinstance(outcome, Made):
            try:
                output.add(outcome.record, outcome.data)
            except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
                reason = f"id={outcome.row.id!r}: another file is in its way ({error})"
        if reason is not None or isinstance(outcome, Failed):
            manifest.fail(outcome.row, str(reason))
            summary.failed += 1
        else:
            summary.made += 1
            summary.seconds += outcome.record["duration"]


def _with_bar(outcomes: Iterable[Made | Failed], summary: Summary, verbose: bool) -> Iterator[Made | Failed]:
    if not verbose:
        yield from outcomes
        return
    from tqdm import tqdm

    finished = summary.before + summary.failed
    with tqdm(desc="speeches", total=summary.rows, initial=finished, unit="row", dynamic_ncols=True) as bar:
        for outcome in outcomes:
            yield outcome
            bar.set_postfix(failed=summary.failed, hours=f"{summary.seconds / 3600:.2f}", refresh=False)
            bar.update()
