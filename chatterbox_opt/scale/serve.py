"""`serve run chatterbox_opt.scale.serve:app`, and `chatterbox-opt serve --ray`."""

from __future__ import annotations

import argparse
import signal
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..cli.model import load
from ..cli.serve import settings_of
from .cluster import Share, connected, live_nodes, number_of_workers, share_of

NOT_HERE = ("host", "port", "ray", "wyoming")  # those are Ray's, or of one machine
LOOK = 0.2  # s


def app(given: dict[str, Any]) -> Any:
    """For `serve run` and config files: `chatterbox-opt serve`'s options without dashes, such as model=mini
    voices=/shared/voices workers=1-4 worker-gpus=1; true for those that stand alone."""
    from ..cli import parser
    from .replica import application

    words = ["serve"]
    for name, value in given.items():
        name = name.replace("_", "-")
        if name in NOT_HERE:
            raise ValueError(f"{name}: is set for Ray's own proxies, or not to be had")
        words += [f"--{name}"] if str(value).lower() == "true" else [f"--{name}={value}"]
    try:
        args = parser().parse_args(words)
    except SystemExit as error:
        raise ValueError(f"{given}: these are not the options of chatterbox-opt serve") from error
    low, high = number_of_workers(args.workers or "1")
    share = Share(low, high, args.worker_cpus or 1.0, args.worker_gpus or 0.0)
    return application(settings_of(args), partial(load, made_absolute(args)), share)


def made_absolute(args: argparse.Namespace) -> argparse.Namespace:
    args.dir = args.dir and Path(args.dir).absolute()
    return args


def run(args: argparse.Namespace) -> None:
    """Until a signal."""
    settings = settings_of(args)
    with connected(args.ray) as ray:
        from ray import serve

        from .again import PROXIES
        from .replica import application

        made = application(settings, partial(load, made_absolute(args)), share_of(args, live_nodes()))
        told = {"runtime_env": {"env_vars": PROXIES}}  # what the controller has its proxies inherit
        serve.start(http_options={"host": settings.host, "port": settings.port}, controller_options=told)
        try:
            serve.run(made, name=args.model, route_prefix="/")
            print(f"Ready to speak at http://{settings.host}:{settings.port}", flush=True)
            wait_for((signal.SIGINT, signal.SIGTERM))
            ended(serve, args.model, settings.drain_seconds)
        except ray.exceptions.RayError as error:
            raise RuntimeError(f"Ray gave up: {error}") from error
        finally:
            serve.shutdown()


def wait_for(signals: Sequence[signal.Signals]) -> None:
    came = threading.Event()
    before = {one: signal.signal(one, lambda *_: came.set()) for one in signals}
    try:
        while not came.wait(LOOK):
            pass
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def ended(serve: Any, name: str, seconds: float) -> None:
    """What was accepted is finished; nothing new is taken."""
    serve.delete(name, _blocking=False)
    until = time.monotonic() + seconds
    while name in serve.status().applications and time.monotonic() < until:
        time.sleep(LOOK)
