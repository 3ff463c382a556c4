"""`chatterbox-opt random-checkpoint`: seeded random weights in the published format, for tests and timings."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..weights.files import DECODERS


def add_command(commands: Any) -> None:
    random = commands.add_parser("random-checkpoint", help="write a checkpoint of seeded random weights")
    random.add_argument("folder", type=Path, help="a new folder")
    random.add_argument("--family", choices=("tts", "mtl", "turbo", "nano"), default="tts", help="the kind of model")
    random.add_argument("--size", choices=("tiny", "full"), default="tiny", help="full: that of the published weights")
    random.add_argument("--decoder", choices=DECODERS, help="meanflow: add the two-step decoder")
    random.add_argument("--seed", type=int, default=0, help="the same seed gives the same weights")
    random.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from ..weights.random_init import write_checkpoint

    print(write_checkpoint(args.folder, args.family, args.size, args.seed, args.decoder))
