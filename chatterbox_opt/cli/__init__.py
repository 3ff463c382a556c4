"""The shell command `chatterbox-opt COMMAND`. Each command is a file: options in add_command(), work in run()."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from .. import __version__
from . import batch, convert, doctor, pack, random_checkpoint, read, say, serve

COMMANDS = (say, read, convert, serve, batch, pack, doctor, random_checkpoint)  # as --help lists them


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        return args.run(args) or 0
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        from ..weights.hub import HubUnreachable

        message = " ".join(str(error).split())
        if isinstance(error, HubUnreachable):
            message += "; from a shell: --dir FOLDER, or --model mini"
        print(f"chatterbox-opt: {message}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("chatterbox-opt", description="Chatterbox TTS, faster.")
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_command(commands)
    return top
