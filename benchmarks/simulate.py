"""How many replicas do so many listeners need: measured rates of one, and a queueing model that is checked first.

    python benchmarks/simulate.py --measure one.json --replicas 1
    python benchmarks/simulate.py --measure two.json --replicas 2
    python benchmarks/simulate.py one.json two.json --every 30 --within 2 --price 0.10

The first two start `chatterbox-opt serve --ray`, keep 1 to 16 clients asking, and then let others come by chance. The
last one has the model repeat what came by chance: its figures stand beside the measured ones. What it says of more
listeners is worth what that comparison says.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import queueing
import tables
import workload
from benchmark_server import TEXTS, ask, percentile, ready

AT_ONCE, SLOTS, QUEUE = 32, 16, 1000  # of scale/replica.py; of EngineOptions; --max-waiting below
CLIENTS = (1, 2, 4, 8, 16)
LISTENERS = (10, 1000, 100_000)
MOST_SIMULATED = 32  # replicas; so many times as many are as many times as many listeners
PORT = 8123


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path, nargs="*", help="files of --measure, that with one replica first")
    parser.add_argument("--measure", type=Path, metavar="FILE")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cpus", type=float, default=1, help="of a replica")
    parser.add_argument("--seconds", type=float, default=8, help="for each number of clients")
    parser.add_argument("--load", type=float, default=0.7, help="of what the replicas can do, in the run by chance")
    parser.add_argument("--rate", type=float, help="requests a second in that run, where nothing is measured before it")
    parser.add_argument("--every", type=float, default=30, help="seconds from one request of a listener to the next")
    parser.add_argument("--within", type=float, default=2, help="seconds to the first sound for 95 of 100")
    parser.add_argument("--price", type=float, help="of a replica's machine for an hour, in whatever money")
    args = parser.parse_args(argv)
    if args.measure:
        args.measure.write_text(json.dumps(measure(args), indent=1) + "\n")
        return 0
    if not args.measured:
        parser.error("there is nothing to go by: --measure FILE first")
    documents = [json.loads(path.read_text()) for path in args.measured]
    print("\n".join(page(documents, args)))
    return 0


# ---- what is measured ------------------------------------------------------------------------------


def measure(args: Namespace) -> dict[str, Any]:
    source = Namespace(fixed=False, kind=args.model)
    with serving(args):
        asyncio.run(busy(args.replicas, 3.0, source))  # warm
        rates, soon = {}, {}
        for clients in CLIENTS if args.rate is None else ():
            rates[clients], soon[clients] = asyncio.run(busy(clients, args.seconds, source))
            workload.say(f"{clients} clients: {rates[clients]:.2f} s a second, the first after {soon[clients]:.2f} s")
        lengths = asyncio.run(alone(source))
        rate = args.rate or args.load * max(rates.values()) / statistics.mean(lengths)
        answers = asyncio.run(by_chance(rate, 2.5 * args.seconds, source))
    return {
        "environment": workload.environment(args.device), "model": args.model, "cpus": args.cpus,
        "replicas": args.replicas, "rates": rates, "soon": soon, "rate": rate, "lengths": lengths,
        "characters": sum(map(len, TEXTS)) / sum(lengths), "answers": answers,
    }


@contextlib.contextmanager
def serving(args: Namespace) -> Iterator[None]:
    command = [sys.executable, "-m", "chatterbox_opt", "serve", "--model", args.model, "--device", args.device, "--ray"]
    command += ["--workers", str(args.replicas), "--worker-cpus", str(args.cpus), "--port", str(PORT)]
    command += ["--max-waiting", str(QUEUE), "--voices", "no-voices"]
    process = subprocess.Popen(command, cwd=workload.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not ready(PORT):
            if process.poll() is not None:
                raise SystemExit(f"the server ended: {' '.join(command)}")
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(60)


async def alone(source: Namespace) -> list[float]:
    """Seconds of speech of each text."""
    return [sound(await ask(PORT, which, source)) for which in range(len(TEXTS))]


async def busy(clients: int, seconds: float, source: Namespace) -> tuple[float, float]:
    """So many, each asking again when it has heard all: speech a second, and seconds to a first sound."""
    answers: list[dict[str, Any]] = []
    began = time.perf_counter()

    async def keep_asking(k: int) -> None:
        while time.perf_counter() - began < seconds:
            at = time.perf_counter() - began
            answers.append(await ask(PORT, k % len(TEXTS), source) | {"at": at})
            k += 1

    await asyncio.gather(*map(keep_asking, range(clients)))
    made = sum(size for one in answers for came, size in zip(one["came"], one["sizes"]) if one["at"] + came < seconds)
    return made / 2 / workload.SAMPLE_RATE / seconds, statistics.median(one["came"][0] for one in answers)


async def by_chance(rate: float, seconds: float, source: Namespace) -> list[dict[str, float]]:
    draw, waiting = random.Random(1), []
    began = time.perf_counter()

    async def one(which: int, at: float) -> dict[str, float]:
        await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
        answer = await ask(PORT, which, source)
        if answer["status"] != 200:
            raise SystemExit(f"a request was not answered: {answer}")
        return {"at": at, "seconds": sound(answer), "first": answer["came"][0], "last": answer["came"][-1]}

    at = draw.expovariate(rate)
    while at < seconds:
        waiting.append(one(draw.randrange(len(TEXTS)), at))
        at += draw.expovariate(rate)
    return await asyncio.gather(*waiting)


def sound(answer: dict[str, Any]) -> float:
    return len(answer["sound"]) / 2 / workload.SAMPLE_RATE


# ---- what follows from it --------------------------------------------------------------------------


def page(documents: Sequence[dict[str, Any]], args: Namespace) -> list[str]:
    one = documents[0]
    rates, soon = ({int(clients): value for clients, value in one[name].items()} for name in ("rates", "soon"))
    how = {
        "rate": queueing.between(rates), "soon": queueing.between(soon), "first": soon[1] * rates[1], "slots": SLOTS,
        "at_once": AT_ONCE, "queue": QUEUE,
    }
    lines = [f"{one['model']}, {one['cpus']:g} cores to a replica: {tables.where(one['environment'])}", ""]
    shown = [[clients, seconds(rate), seconds(soon[clients])] for clients, rate in rates.items()]
    lines += [tables.table(["clients of one replica", "speech a second", "first sound"], shown), ""]
    checked = [row for document in documents for row in compared(document, how)]
    head = ["replicas", "requests", "a second", "", "first sound, p50", "p95", "all of it, p50", "p95"]
    lines += [tables.table(head, checked), ""]
    best = max(rates.values()) * one["characters"]  # characters a second
    hours = 1e6 / best / 3600
    lines += [f"{one['characters']:.1f} characters a second of speech: a million take a replica {hours:.1f} hours."]
    plans = [plan(listeners, one, how, args, best) for listeners in LISTENERS]
    head = ["listeners", "requests a second", "replicas", "first sound, p50", "p95", "busy", "a million characters"]
    return [*lines, "", tables.table(head, plans)]


def compared(document: dict[str, Any], how: dict[str, Any]) -> Iterator[list[str]]:
    """The same requests at the same moments, as they were answered and as the model has it."""
    answers = document["answers"]
    asked = [queueing.Speech(one["at"], one["seconds"]) for one in answers]
    done = queueing.simulate(asked, document["replicas"], **how)
    real = [one["first"] for one in answers], [one["last"] for one in answers]
    model = [one.heard - one.arrived for one in done], [one.ended - one.arrived for one in done]
    same = [document["replicas"], len(answers), f"{document['rate']:.2f}"]
    yield [*same, "measured", *map(seconds, quartet(*real))]
    yield [*same, "simulated", *map(seconds, quartet(*model))]


def quartet(first: Sequence[float], last: Sequence[float]) -> list[float]:
    return [percentile(sorted(values), share) for values in (first, last) for share in (0.5, 0.95)]


def seconds(value: float) -> str:
    return f"{value:.2f} s"


def plan(listeners: int, one: dict[str, Any], how: dict[str, Any], args: Namespace, best: float) -> list[str]:
    """The fewest replicas with which 95 of 100 hear something soon enough, and nobody is sent away."""
    rate, mean = listeners / args.every, statistics.mean(one["lengths"])
    fewest = max(1, int(rate * mean / (best / one["characters"])))
    number, step = fewest, max(1, fewest // 50)
    while (found := tried(number, rate, one, how))[1] > args.within:
        if number > 3 * fewest + 10:
            return [f"{listeners:,}", f"{rate:.1f}", "-", "-", "-", "-", "never so soon"]
        number += step
    made = rate * mean * one["characters"] * 3600  # characters an hour
    hours = number * 1e6 / made
    cost = f"{hours:.1f} hours" + (f", {hours * args.price:.2f}" if args.price is not None else "")
    busy = rate * mean / (number * best / one["characters"])
    return [f"{listeners:,}", f"{rate:.1f}", f"{number:,}", *map(seconds, found), f"{100 * busy:.0f} %", cost]


def tried(number: int, rate: float, one: dict[str, Any], how: dict[str, Any]) -> tuple[float, float]:
    part = min(1.0, MOST_SIMULATED / number)
    took = max(60.0, 500 / (part * rate))
    speeches = queueing.poisson(part * rate, took, one["lengths"], seed=number)
    done = queueing.simulate(speeches, max(1, round(part * number)), **how)
    first = sorted(float("inf") if one.refused else one.heard - one.arrived for one in done)
    return percentile(first, 0.5), percentile(first, 0.95)


if __name__ == "__main__":
    sys.exit(main())
