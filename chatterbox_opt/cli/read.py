"""`chatterbox-opt read`: reads a script into sound files, with a progress bar."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..files import check_readable
from ..reading.script import KINDS
from . import model as models
from . import speech as speeches
from .files import check_recordings


def add_command(commands: Any) -> None:
    read = commands.add_parser("read", help="read a script aloud: a book, a dialogue")
    read.add_argument("script", type=Path, metavar="FILE", help="text, Markdown (.md), or a dialogue of `Name: line`")
    read.add_argument("-o", "--output", type=Path, required=True, help="book.wav, .flac, .ogg or .mp3")
    read.add_argument("--as", dest="kind", choices=KINDS, help="the format of FILE; by default from its ending")
    read.add_argument("--voices", type=Path, metavar="MAP.toml", help="voice, options and seed of each name")
    read.add_argument("--voice", type=Path, help="a recording of the narrator's voice")
    read.add_argument("--lang", help="language of --model multilingual, such as fr")
    read.add_argument("--seed", type=int, default=0, help="another seed speaks every paragraph differently")
    read.add_argument("--chapters", action="store_true", help="one file per chapter: book-01.wav and so on")
    read.add_argument("--captions", choices=("srt", "vtt", "json"), help="write captions beside each sound file")
    read.add_argument("--words", action="store_true", help="word times in the captions; needs the extra 'hearing'")
    read.add_argument("--markup", action="store_true", help="the text has marks: [pause 0.8s], [voice NAME], [lang fr]")
    read.add_argument("--loudness", type=float, metavar="LUFS", help="loudness of each piece (EBU R 128), such as -20")
    read.add_argument("--no-breath", action="store_true", help="the same short pause between all pieces")
    read.add_argument("--work", type=Path, help="folder of spoken paragraphs, to continue from; by default OUTPUT.work")
    speeches.add_arguments(read)
    models.add_arguments(read)
    read.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from ..reading.book import check, read_aloud
    from ..reading.cast import NARRATOR, Role, cast_of
    from ..reading.plan import chooses

    check(args.output, args.captions)
    models.check(args)
    check_readable(args.script)
    check_recordings(args.voice)
    if args.words and not args.captions:
        raise ValueError("--words needs --captions")
    cast = cast_of(args.voices)
    if args.voice is not None:
        cast[NARRATOR] = replace(cast.get(NARRATOR, Role()), voice=args.voice)
    options: dict[str, Any] = {"language_ids": models.language(args)} if args.model == "multilingual" else {}
    options |= {"spoken": args.spoken, "pronounce": speeches.pronunciations(args.pronounce)}
    options |= {"takes": args.takes, "retries": args.retries}
    speeches.check(args, chooses(options, cast))
    align = speeches.aligner() if args.words else None
    model = models.load(args)
    options["score"] = speeches.score_of(args, model, chooses(options, cast))
    with bar() as progress:
        written = read_aloud(
            model, args.script, args.output, cast=cast, kind=args.kind, chapters=args.chapters, captions=args.captions,
            markup=args.markup, align=align, seed=args.seed, breath=not args.no_breath, loudness=args.loudness,
            work=args.work, progress=progress, **options,
        )
    for path in written:
        print(path)


@contextmanager
def bar() -> Iterator[Callable[[int, int, int], None]]:
    """A progress bar of characters, with the time left at the pace of this run; none where stderr is no terminal."""
    from tqdm import tqdm

    with tqdm(desc="reading", unit="char", dynamic_ncols=True, disable=None) as drawn:

        def progress(spoken: int, kept: int, total: int) -> None:
            drawn.total, drawn.initial = total, kept
            drawn.update(kept + spoken - drawn.n)

        try:
            yield progress
        except KeyboardInterrupt:
            drawn.close()
            print("spoken paragraphs are kept: the same command continues from here", file=sys.stderr)
            raise
