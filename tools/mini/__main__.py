"""python -m tools.mini STAGE [options]: data tokenizer t3 flow vocoder export distil eval, in this order."""

from __future__ import annotations

import importlib
import sys

STAGES = ("data", "tokenizer", "t3", "flow", "vocoder", "export", "distil", "eval")
MODULES = {"eval": "evaluate"}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in STAGES:
        sys.exit(f"usage: python -m tools.mini {{{','.join(STAGES)}}} [--help]")
    stage = sys.argv[1]
    importlib.import_module(f"{__package__}.{MODULES.get(stage, stage)}").main(sys.argv[2:])


if __name__ == "__main__":
    main()
