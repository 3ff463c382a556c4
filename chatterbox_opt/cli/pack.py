"""`chatterbox-opt pack`: writes a checkpoint with its weights in the form that the engine uses."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .model import FAMILIES


def add_command(commands: Any) -> None:
    pack = commands.add_parser("pack", help="write a checkpoint with its weights as they are used: quicker to load")
    pack.add_argument("folder", type=Path, help="a checkpoint folder")
    pack.add_argument("out", type=Path, help="a new folder, for --dir or from_local()")
    pack.add_argument("--model", choices=tuple(FAMILIES), default="english")
    pack.add_argument("--device", default="cpu", help="the one to load it on later: cpu, cuda or mps")
    pack.add_argument("--quantize", choices=("int8", "int4"))
    pack.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of T3; the device's own otherwise")
    pack.add_argument("--t3-file", help="a fine-tuned T3: a file of the folder, or any other")
    pack.add_argument("--decoder", help="meanflow: Turbo's of two steps; or a file; standard: the model's own")
    pack.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from ..options import EngineOptions
    from ..packing import pack

    engine = EngineOptions(quantize=args.quantize, dtype=args.dtype or "auto")
    how = dict(t3_file=args.t3_file, decoder=args.decoder, engine=engine)
    form = pack(args.folder, args.out, FAMILIES[args.model], args.device, **how)
    print(f"{args.out}: {form}")
