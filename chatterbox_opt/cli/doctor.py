"""`chatterbox-opt doctor`: checks the package on this device, and writes a report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .model import MODELS, best_device


def add_command(commands: Any) -> None:
    doctor = commands.add_parser("doctor", help="check the package on this device, and write a report for bug reports")
    doctor.add_argument("--device", default="auto", help="cuda, mps or cpu; by default the best available")
    doctor.add_argument("--model", nargs="+", default=(), choices=MODELS, help="mini, or full size with random weights")
    doctor.add_argument("--quick", action="store_true", help="mini only: two minutes instead of ten")
    doctor.add_argument("--json", type=Path, metavar="FILE", help="write findings and figures")
    doctor.add_argument("--markdown", type=Path, metavar="FILE", help="write the report")
    doctor.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..checks import usable_device
    from ..doctor.examine import examine

    device = best_device() if args.device == "auto" else args.device
    device = usable_device("mps" if device == "mlx" else device)  # it examines torch only
    return examine(device, args.model, args.quick, args.json, args.markdown)
