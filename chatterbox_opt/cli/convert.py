"""`chatterbox-opt convert`: speaks a recording again in another voice."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from . import model as models
from .files import check_output, check_recordings, save


def add_command(commands: Any) -> None:
    convert = commands.add_parser("convert", help="speak a recording again in another voice")
    convert.add_argument("input", type=Path, help="a recording")
    convert.add_argument("-o", "--output", default="out.wav", type=Path, help="a .wav, .flac, .ogg or .mp3; -: a pipe")
    convert.add_argument("--target", type=Path, help="a recording of the voice; by default the built-in voice")
    convert.add_argument("--seed", type=int, help="the same recording, voice and seed give the same audio")
    models.add_arguments(convert, choice=False)
    convert.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from ..vc import OptimizedChatterboxVC

    check_output(args.output)
    check_recordings(args.input, args.target)
    model = models.source(OptimizedChatterboxVC, args)
    save(args.output, model.generate(args.input, args.target, seed=args.seed), model.sr)
