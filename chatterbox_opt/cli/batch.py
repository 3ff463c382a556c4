"""`chatterbox-opt batch`: speaks a table of texts into a folder; the same command continues an interrupted run."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..scale import cluster
from . import model as models
from . import speech as speeches
from .files import check_recordings


def add_command(commands: Any) -> None:
    batch = commands.add_parser("batch", help="speak a table of texts into a folder, or continue such a run")
    batch.add_argument("input", type=Path, help="rows of text, id, voice, seed, ...: .jsonl, .csv or .parquet")
    batch.add_argument("-o", "--output", type=Path, required=True, help="the folder for sound files and manifest")
    batch.add_argument("--format", choices=("flac", "mp3", "wav"), default="flac", help="mp3 needs the extra serve")
    batch.add_argument("--shard", type=int, metavar="ROWS", help="write WebDataset tar files with this many rows each")
    batch.add_argument("--parquet", action="store_true", help="write the shards as parquet files")
    batch.add_argument("--voice", type=Path, help="a recording or saved voice, for rows without one")
    batch.add_argument("--lang", help="language of --model multilingual, such as fr, for rows without one")
    speeches.add_arguments(batch)
    models.add_arguments(batch)
    cluster.add_arguments(batch)
    batch.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from ..scale.batch import speak_table
    from ..scale.on_ray import speak_on_ray
    from ..scale.rows import Row, read_rows
    from ..scale.speaking import speak

    check(args)
    common = {"voice": args.voice and str(args.voice.absolute()), "language_id": models.language(args)}
    common |= {"spoken": args.spoken or None, "retries": args.retries or None}
    common["takes"] = args.takes if args.takes != 1 else None
    rows = read_rows(args.input, {name: value for name, value in common.items() if value is not None})
    speeches.check(args, any(isinstance(row, Row) and row.several_takes for row in rows))
    settings = {name: getattr(args, name) for name in ("model", "quantize", "preset", "decoder", "no_watermark")}
    models.with_absolute_paths(args)
    settings["dir"] = args.dir and str(args.dir)
    settings["score"] = args.score if args.score != "length" else None
    settings["pronounce"] = args.pronounce and hashlib.blake2b(args.pronounce.read_bytes(), digest_size=16).hexdigest()
    respelt = speeches.pronunciations(args.pronounce)

    def outcomes(left: Sequence[Any]) -> Any:
        score = partial(speeches.score_of, args, chooses=any(row.several_takes for row in left))
        if args.ray is not None:
            share = partial(cluster.share_of, args)
            load = partial(models.load, args)
            return speak_on_ray(load, left, args.format, args.ray, share, pronounce=respelt, score=score)
        model = models.load(args)
        return speak(model, left, args.format, pronounce=respelt, score=score(model))

    how = {"shard": args.shard, "packing": "parquet" if args.parquet else "tar", "verbose": sys.stderr.isatty()}
    done = speak_table(rows, args.output, outcomes, args.format, settings=settings, **how)
    print(f"{args.output}: {done.made} made, {done.before} made before; {done.seconds:.1f} s of speech")
    if done.failed:
        raise ValueError(f"{done.failed} of {done.rows} rows failed: {args.output / 'failures.jsonl'} says why")


def check(args: argparse.Namespace) -> None:
    """Raises ValueError if no row could be spoken with the options, before anything is loaded."""
    from ..calls import GenerateOptions

    models.check(args)
    cluster.check_arguments(args)
    GenerateOptions(takes=args.takes, retries=args.retries)  # raises
    if args.ray in (None, cluster.LOCAL):  # the machines of another cluster may have files that this one has not
        check_recordings(args.voice)
