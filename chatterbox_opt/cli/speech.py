"""Options for how a text is read, how many takes are drawn, and which one is kept. In `batch` they are the defaults of
rows that do not set them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..text.libraries import LANGUAGES as LIBRARIES

SCORES = ("length", "words", "voice")


def add_arguments(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("how the text is read (docs/text.md), and takes of it (docs/takes.md)")
    group.add_argument("--spoken", action="store_true", help="say numbers, dates, money and units in words")
    group.add_argument("--spoken-by", choices=LIBRARIES, dest="spoken", help="the same, with this library")
    group.add_argument("--pronounce", type=Path, metavar="FILE", help="respellings, .toml or .json")
    group.add_argument("--takes", type=int, default=1, help="speak each piece this many times and keep the best")
    group.add_argument("--score", choices=SCORES, default="length", help="judges takes; words needs the extra hearing")
    group.add_argument("--retries", type=int, default=0, help="draw a failed piece again, up to this many times")


def check(args: argparse.Namespace, chooses: bool = False) -> None:
    """Raises ValueError for a score with nothing to choose from. `chooses`: as for score_of()."""
    if args.score != "length" and args.takes == 1 and not args.retries and not chooses:
        raise ValueError(f"--score {args.score} chooses among takes: give --takes 2 or more, or --retries 1 or more")


def pronunciations(path: Path | None) -> Any:
    if path is None:
        return None
    from ..text.pronounce import Pronunciations

    return Pronunciations.load(path)


def score_of(args: argparse.Namespace, model: Any, chooses: bool = False) -> Any:
    """Returns the score of --score, or None if there is a single take. `chooses`: some text has several takes even if
    --takes and --retries do not say so."""
    from ..scores import PlausibleLength, VoiceLikeness, WordsHeard

    if args.takes == 1 and not args.retries and not chooses:
        return None
    if args.score == "voice":
        return VoiceLikeness(model)
    return WordsHeard() if args.score == "words" else PlausibleLength()


def aligner() -> Any:
    from ..align import WhisperAligner

    return WhisperAligner()
