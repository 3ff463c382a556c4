"""`chatterbox-opt doctor`: checks the package on this device, and writes a report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .model import MODELS, best_device


def add_command(commands: Any) -> None:
    doctor = commands.add_parser("doctor", help="examine it on this device, and write what to put into a bug report")
    doctor.add_argument("--device", default="auto", help="cuda, mps or cpu; the best there is otherwise")
    doctor.add_argument("--model", nargs="+", default=(), choices=MODELS, help="mini, or random weights of full size")
    doctor.add_argument("--quick", action="store_true", help="mini alone, in two minutes instead of ten")
    doctor.add_argument("--json", type=Path, metavar="FILE", help="the findings and figures")
    doctor.add_argument("--markdown", type=Path, metavar="FILE", help="the report")
    doctor.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..checks import usable_device
    from ..doctor.examine import examine

    device = usable_device(best_device() if args.device == "auto" else args.device)
    device = "mps" if device == "mlx" else device  # it examines torch only
    return examine(device, args.model, args.quick, args.json, args.markdown)
