"""The server on a Ray cluster: `chatterbox-opt serve --ray`, and `serve run chatterbox_opt.scale.serve:app`."""

from __future__ import annotations

import argparse
import signal
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from ..cli.model import load, with_absolute_paths
from ..cli.serve import settings_of
from .cluster import Share, connected, live_nodes, range_of_workers, share_of

NOT_ALLOWED = ("host", "port", "ray", "wyoming")  # set in Ray's own configuration, or for one machine only
POLL = 0.2  # s between two checks


def app(given: dict[str, Any]) -> Any:
    """Returns the application for `serve run` and config files. `given`: the options of `chatterbox-opt serve` without
    dashes, such as model=mini voices=/shared/voices workers=1-4 worker-gpus=1; those without a value are true."""
    from ..cli import parser
    from .replica import application

    words = ["serve", "--host", "0.0.0.0"]  # where Ray listens, and by what name it is called, is not known here
    for name, value in given.items():
        name = name.replace("_", "-")
        if name in NOT_ALLOWED:
            raise ValueError(f"{name}: not an option here; host and port are Ray's own, the others are for one machine")
        for one in value if isinstance(value, (list, tuple)) else [value]:  # such as several allow-origin
            words += [f"--{name}"] if str(one).lower() == "true" else [f"--{name}={one}"]
    try:
        args = parser().parse_args(words)
    except SystemExit as error:
        raise ValueError(f"{given}: these are not the options of chatterbox-opt serve") from error
    low, high = range_of_workers(args.workers or "1")
    share = Share(low, high, args.worker_cpus or 1.0, args.worker_gpus or 0.0)
    return application(settings_of(args), partial(load, with_absolute_paths(args)), share)


def run(args: argparse.Namespace) -> None:
    """Serves until SIGINT or SIGTERM."""
    settings = settings_of(args)
    with connected(args.ray) as ray:
        from ray import serve

        from .again import PROXIES
        from .replica import application

        server = application(settings, partial(load, with_absolute_paths(args)), share_of(args, live_nodes()))
        environment = {"runtime_env": {"env_vars": PROXIES}}  # the proxies inherit it from the controller
        serve.start(http_options={"host": settings.host, "port": settings.port}, controller_options=environment)
        try:
            serve.run(server, name=args.model, route_prefix="/")
            print(f"Ready to speak at http://{settings.host}:{settings.port}", flush=True)
            wait_for((signal.SIGINT, signal.SIGTERM))
            drain(serve, args.model, settings.drain_seconds)
        except ray.exceptions.RayError as error:
            raise RuntimeError(f"Ray gave up: {error}") from error
        finally:
            serve.shutdown()


def wait_for(signals: Sequence[signal.Signals]) -> None:
    arrived = threading.Event()
    handlers = {number: signal.signal(number, lambda *_: arrived.set()) for number in signals}
    try:
        while not arrived.wait(POLL):
            pass
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def drain(serve: Any, name: str, seconds: float) -> None:
    """Takes no new requests, and waits until those that were accepted are finished, up to `seconds`."""
    serve.delete(name, _blocking=False)
    until = time.monotonic() + seconds
    while name in serve.status().applications and time.monotonic() < until:
        time.sleep(POLL)
