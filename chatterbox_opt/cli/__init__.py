"""The shell command `chatterbox-opt COMMAND`. Each command is a file: options in add_command(), work in run()."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from .. import __version__
from . import batch, convert, doctor, pack, random_checkpoint, read, say, serve
from .parser import Parser

COMMANDS = (say, read, convert, serve, batch, pack, doctor, random_checkpoint)  # as --help lists them


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        return args.run(args) or 0
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"chatterbox-opt: {message_of(error, args)}", file=sys.stderr)
        return 1


def message_of(error: Exception, args: argparse.Namespace) -> str:
    """Returns one line."""
    from ..weights.hub import HubUnreachable

    message = " ".join(str(error).split())
    if isinstance(error, HubUnreachable):
        return message + "; from a shell: --dir FOLDER" + (", or --model mini" if hasattr(args, "model") else "")
    if isinstance(error, OSError) and error.filename is not None and error.filename2 is None:
        return f"{error.filename}: {error.strerror}"
    return message


def parser() -> argparse.ArgumentParser:
    top = Parser("chatterbox-opt", description="Chatterbox TTS, faster.")
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:  # each gets a Parser
        command.add_command(commands)
    return top
