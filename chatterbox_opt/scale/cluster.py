"""A Ray cluster: its command-line options, the connection to it, and the share of it that each engine gets."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

LOCAL = "local"  # for Ray: a cluster of this machine alone, which ends with this program


@dataclass(frozen=True)
class Share:
    """How many engines there are, and what each of them gets."""

    fewest: int
    most: int
    cpus: float
    gpus: float


def add_arguments(command: argparse.ArgumentParser) -> None:
    ray = command.add_argument_group("on a Ray cluster, with the extra ray")
    ray.add_argument("--ray", nargs="?", const=LOCAL, metavar="ADDRESS", help="HOST:PORT, or auto; alone: this machine")
    ray.add_argument("--workers", metavar="N", help="engines; MIN-MAX: as many as are needed; all that fit otherwise")
    ray.add_argument("--worker-cpus", type=float, metavar="N", help="cores, and threads, of an engine")
    ray.add_argument("--worker-gpus", type=float, metavar="N", help="of an engine; 0.5: two engines share one")


def check_arguments(args: Any) -> None:
    if args.ray is None and (args.workers or args.worker_cpus is not None or args.worker_gpus is not None):
        raise ValueError("--workers, --worker-cpus and --worker-gpus are of a Ray cluster: --ray names it")


def range_of_workers(words: str) -> tuple[int, int]:
    """Returns (fewest, most) from N or MIN-MAX."""
    low, dash, high = str(words).partition("-")
    high = high if dash else low
    if not (low.isdecimal() and high.isdecimal() and 1 <= int(low) <= int(high)):
        raise ValueError(f"workers={words!r}: a number such as 4 is needed, or a range such as 1-4")
    return int(low), int(high)


def share_of(args: Any, nodes: Sequence[Mapping[str, float]]) -> Share:
    """`nodes`: the resources of each. On CPUs an engine gets all cores of a node, since its speed comes from its
    threads, unless more engines are asked for than there are nodes."""
    gpus, cpus = args.worker_gpus, args.worker_cpus
    asked = range_of_workers(args.workers) if args.workers else None
    if gpus is None:
        gpus = float(args.device in ("auto", "cuda") and any(node.get("GPU") for node in nodes))
    if cpus is None:
        cores = [node["CPU"] for node in nodes if node.get("CPU")] or [1]
        part = sum(cores) // asked[1] if asked else max(cores)
        cpus = 1.0 if gpus else float(max(1, min(*cores, part)))
    if not (cpus > 0 and gpus >= 0):
        raise ValueError(f"worker-cpus={cpus:g}, worker-gpus={gpus:g}: more than 0 cores, 0 GPUs or more")
    fit = sum(engines_that_fit(node, cpus, gpus) for node in nodes)
    low, high = asked or (max(1, fit),) * 2
    return Share(low, high, cpus, gpus)


def engines_that_fit(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    fit = int(node.get("CPU", 0) / cpus)
    return min(fit, int(node.get("GPU", 0) / gpus)) if gpus else fit


def live_nodes() -> list[dict[str, float]]:
    """Returns the resources of each node, such as {"CPU": 8.0, "GPU": 1.0}."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Yields the module ray, connected. A connection that the program already has is used, and left open."""
    try:
        import ray
    except ImportError as error:
        raise ValueError(f"{error}; a cluster needs more: pip install 'chatterbox-opt[ray]'") from error
    if ray.is_initialized():
        yield ray
        return
    try:
        ray.init(address, logging_level=logging.WARNING, log_to_driver=False, configure_logging=False)
    except ConnectionError as error:
        raise ValueError(f"--ray {address}: there is no cluster ({error})") from error
    try:
        yield ray
    finally:
        ray.shutdown()
