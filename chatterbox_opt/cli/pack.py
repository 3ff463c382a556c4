"""`chatterbox-opt pack`: writes a checkpoint with its weights in the form that the engine uses."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..files import naming
from .model import FAMILIES, QUANTIZE, QUANTIZED


def add_command(commands: Any) -> None:
    pack = commands.add_parser("pack", help="convert a checkpoint to the engine's form, which loads faster")
    pack.add_argument("folder", type=Path, help="a checkpoint folder")
    pack.add_argument("out", type=Path, help="the new folder, for --dir or from_local()")
    pack.add_argument("--model", choices=tuple(FAMILIES), default="english", help="what the checkpoint is of")
    pack.add_argument("--device", default="cpu", help="the device to load it on later: cpu, cuda or mps")
    pack.add_argument("--quantize", choices=QUANTIZED, help=QUANTIZE)
    pack.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of T3; by default chosen by device")
    pack.add_argument("--t3-file", help="a fine-tuned T3: a file in the folder, or another path")
    pack.add_argument("--decoder", help="meanflow: Turbo's two-step decoder; standard: the model's own; or a file")
    pack.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from ..options import EngineOptions
    from ..packing import pack

    engine = EngineOptions(quantize=args.quantize, dtype=args.dtype or "auto")
    how = dict(t3_file=args.t3_file, decoder=args.decoder, engine=engine)
    with naming(args.out):
        form = pack(args.folder, args.out, FAMILIES[args.model], args.device, **how)
    print(f"{args.out}: {form}")
