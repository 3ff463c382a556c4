"""`chatterbox-opt serve`: speech over HTTP, and over Home Assistant's protocol."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..files import text_of
from ..scale import cluster
from . import model as models
from .speech import pronunciations

LARGEST_UPLOAD = 4096  # MB, as ServeSettings has it in bytes


def add_command(commands: Any) -> None:
    serve = commands.add_parser("serve", help="speak over HTTP, for OpenAI's clients and others")
    serve.add_argument("--host", default="127.0.0.1", help="0.0.0.0 accepts other machines: set a key then")
    serve.add_argument("--port", type=int, default=8004, help="of HTTP")
    serve.add_argument("--api-key", help="required as bearer token; any user of this machine can see it here")
    serve.add_argument("--api-key-file", type=Path, help="a file that holds the key")
    serve.add_argument("--voices", default="voices", metavar="DIR_OR_URL", help="where uploaded voices are kept")
    serve.add_argument("--max-waiting", type=int, default=64, help="requests that may wait; further ones get a 429")
    serve.add_argument("--max-text", type=int, default=100_000, help="characters per request")
    serve.add_argument("--max-upload-mb", type=int, default=25, help="largest recording that may be sent")
    serve.add_argument(
        "--allow-origin", action="append", default=[],
        help="origin of a foreign page, such as http://chat.example:3000, or of a proxy; may be repeated",
    )
    serve.add_argument("--pronounce", type=Path, metavar="FILE", help="respellings for every request, see docs/text.md")
    serve.add_argument("--wyoming", type=int, metavar="PORT", help="also speak Home Assistant's protocol, on this port")
    serve.add_argument("--drain-seconds", type=float, default=120, help="for accepted requests to finish after SIGTERM")
    models.add_arguments(serve, cache=True)
    cluster.add_arguments(serve)
    serve.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    cluster.check_arguments(args)
    if args.ray is not None:
        from ..scale.serve import run

        run(args)
        return
    try:
        from ..serve.run import serve
    except ImportError as error:
        raise ValueError(f"{error}; the server needs further packages: pip install 'chatterbox-opt[serve]'") from error
    serve(settings_of(args), lambda: models.load(args))


def settings_of(args: argparse.Namespace) -> Any:
    from ..serve.settings import MEGABYTE, ServeSettings

    models.check(args)
    if args.api_key and args.api_key_file:
        raise ValueError("give --api-key or --api-key-file, not both")
    if not 1 <= args.max_upload_mb <= LARGEST_UPLOAD:
        raise ValueError(f"--max-upload-mb {args.max_upload_mb}: a number from 1 to {LARGEST_UPLOAD} is needed")
    key = text_of(args.api_key_file).strip() if args.api_key_file else args.api_key
    return ServeSettings(
        model_id=args.model, host=args.host, port=args.port, api_key=key, voices_dir=args.voices,
        max_waiting=args.max_waiting, allowed_origins=tuple(args.allow_origin), wyoming_port=args.wyoming,
        max_text=args.max_text, max_upload=args.max_upload_mb * MEGABYTE, drain_seconds=args.drain_seconds,
        pronounce=pronunciations(args.pronounce),
    )
