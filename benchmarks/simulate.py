"""How many replicas a number of listeners needs: by the measured rates of one replica, and by a queueing model.

    python benchmarks/simulate.py --measure one.json --replicas 1
    python benchmarks/simulate.py --measure two.json --replicas 2
    python benchmarks/simulate.py one.json two.json --every 30 --within 2 --price 0.10

The first two start `chatterbox-opt serve --ray` and measure: first with 1 to 16 clients that each ask again and again,
then with requests at random times. The last one simulates those same requests and prints its figures beside the
measured ones, which shows how far to trust it. Then it simulates more listeners.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import queueing
import tables
import workload
from benchmark_server import TEXTS, ask, free_port, percentile, running

AT_ONCE, SLOTS, QUEUE = 32, 16, 1000  # as in scale/replica.py; as in EngineOptions; --max-waiting of serving()
CLIENTS = (1, 2, 4, 8, 16)
LISTENERS = (10, 1000, 100_000)
MOST_SIMULATED = 32  # replicas; of more, a part is simulated, with the same part of the requests


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path, nargs="*", help="files of --measure, first the one of one replica")
    parser.add_argument("--measure", type=Path, metavar="FILE")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cpus", type=float, default=1, help="cores of a replica")
    parser.add_argument("--seconds", type=float, default=8, help="for each number of clients")
    parser.add_argument("--load", type=float, default=0.7, help="part of the replicas' rate that random requests take")
    parser.add_argument("--rate", type=float, help="random requests a second; then no rates are measured")
    parser.add_argument("--every", type=float, default=30, help="seconds from one request of a listener to the next")
    parser.add_argument("--within", type=float, default=2, help="seconds to the first sound for 95 of 100")
    parser.add_argument("--price", type=float, help="of a replica's machine for an hour, in any currency")
    args = parser.parse_args(argv)
    if args.measure:
        args.measure.write_text(json.dumps(measure(args), indent=1) + "\n")
        return 0
    if not args.measured:
        parser.error("no measurements: --measure FILE first")
    if missing := [str(path) for path in args.measured if not path.is_file()]:
        parser.error(f"there is no file {', '.join(missing)}")
    documents = [json.loads(path.read_text()) for path in args.measured]
    print("\n".join(page(documents, args)))
    return 0


# ---- measuring -------------------------------------------------------------------------------------


def measure(args: Namespace) -> dict[str, Any]:
    """Returns the document that --measure writes."""
    source = Namespace(fixed=False, kind=args.model)
    with serving(args) as port:
        asyncio.run(keep_busy(port, args.replicas, 3.0, source))  # warm-up
        rates, first_delays = {}, {}
        for clients in CLIENTS if args.rate is None else ():
            rates[clients], first_delays[clients] = asyncio.run(keep_busy(port, clients, args.seconds, source))
            what = f"{rates[clients]:.2f} s of speech a second, the first sound after {first_delays[clients]:.2f} s"
            workload.say(f"{clients} clients: {what}")
        lengths = asyncio.run(lengths_of_texts(port, source))
        rate = args.rate or args.load * max(rates.values()) / statistics.mean(lengths)
        answers = asyncio.run(ask_at_random(port, rate, 2.5 * args.seconds, source))
    return {
        "environment": workload.environment(args.device), "model": args.model, "cpus": args.cpus,
        "replicas": args.replicas, "rates": rates, "soon": first_delays, "rate": rate, "lengths": lengths,
        "characters": sum(map(len, TEXTS)) / sum(lengths), "answers": answers,
    }


@contextlib.contextmanager
def serving(args: Namespace) -> Iterator[int]:
    """Yields the port of a server with replicas, ready to speak."""
    port = free_port()
    command = [sys.executable, "-m", "chatterbox_opt", "serve", "--model", args.model, "--device", args.device, "--ray"]
    command += ["--workers", str(args.replicas), "--worker-cpus", str(args.cpus), "--port", str(port)]
    command += ["--max-waiting", str(QUEUE), "--voices", "no-voices"]
    with running(command, port):
        yield port


async def lengths_of_texts(port: int, source: Namespace) -> list[float]:
    """Returns seconds of speech of each text."""
    return [speech_seconds(await ask(port, which, source)) for which in range(len(TEXTS))]


async def keep_busy(port: int, clients: int, seconds: float, source: Namespace) -> tuple[float, float]:
    """Has clients ask, each again when its speech has ended. Returns seconds of speech made in a second, and the median
    of seconds to a first sound."""
    answers: list[dict[str, Any]] = []
    began = time.perf_counter()

    async def keep_asking(k: int) -> None:
        while time.perf_counter() - began < seconds:
            at = time.perf_counter() - began
            answers.append(await ask(port, k % len(TEXTS), source) | {"at": at})
            k += 1

    await asyncio.gather(*map(keep_asking, range(clients)))
    parts = [(a["at"] + came, size) for a in answers for came, size in zip(a["came"], a["sizes"])]
    made = sum(size for came, size in parts if came < seconds)  # bytes
    return made / 2 / workload.SAMPLE_RATE / seconds, statistics.median(a["came"][0] for a in answers)


async def ask_at_random(port: int, rate: float, seconds: float, source: Namespace) -> list[dict[str, float]]:
    """Asks `rate` times a second at independent times. Returns, of each request, when it was sent, its seconds of
    speech, and the seconds to its first and its last sound."""
    generator, requests = random.Random(1), []
    began = time.perf_counter()

    async def request(which: int, at: float) -> dict[str, float]:
        await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
        answer = await ask(port, which, source)
        if answer["status"] != 200:
            raise SystemExit(f"a request was not answered: {answer}")
        return {"at": at, "seconds": speech_seconds(answer), "first": answer["came"][0], "last": answer["came"][-1]}

    at = generator.expovariate(rate)
    while at < seconds:
        requests.append(request(generator.randrange(len(TEXTS)), at))
        at += generator.expovariate(rate)
    return await asyncio.gather(*requests)


def speech_seconds(answer: dict[str, Any]) -> float:
    return len(answer["sound"]) / 2 / workload.SAMPLE_RATE


# ---- simulating ------------------------------------------------------------------------------------


def page(documents: Sequence[dict[str, Any]], args: Namespace) -> list[str]:
    """Returns the lines of the tables."""
    single = documents[0]  # of one replica
    rates, first_delays = ({int(k): value for k, value in single[name].items()} for name in ("rates", "soon"))
    how = {
        "rate": queueing.between(rates), "first_delay": queueing.between(first_delays),
        "first": first_delays[1] * rates[1], "slots": SLOTS, "at_once": AT_ONCE, "queue_size": QUEUE,
    }
    lines = [f"{single['model']}, {single['cpus']:g} cores to a replica: {tables.where(single['environment'])}", ""]
    shown = [[clients, seconds(rate), seconds(first_delays[clients])] for clients, rate in rates.items()]
    lines += [tables.table(["clients of one replica", "speech a second", "first sound"], shown), ""]
    compared = [row for document in documents for row in comparison(document, how)]
    head = ["replicas", "requests", "a second", "", "first sound, p50", "p95", "all of it, p50", "p95"]
    lines += [tables.table(head, compared), ""]
    best = max(rates.values()) * single["characters"]  # characters a second
    hours = 1e6 / best / 3600
    lines += [f"{single['characters']:.1f} characters a second of speech: a million take a replica {hours:.1f} hours."]
    plans = [plan(listeners, single, how, args, best) for listeners in LISTENERS]
    head = ["listeners", "requests a second", "replicas", "first sound, p50", "p95", "busy", "a million characters"]
    return [*lines, "", tables.table(head, plans)]


def comparison(document: dict[str, Any], how: dict[str, Any]) -> Iterator[list[str]]:
    """Yields two rows about the same requests at the same times: measured, and simulated."""
    answers = document["answers"]
    speeches = [queueing.Speech(answer["at"], answer["seconds"]) for answer in answers]
    done = queueing.simulate(speeches, document["replicas"], **how)
    measured = [answer["first"] for answer in answers], [answer["last"] for answer in answers]
    simulated = [speech.heard - speech.arrived for speech in done], [speech.ended - speech.arrived for speech in done]
    load = [document["replicas"], len(answers), f"{document['rate']:.2f}"]
    yield [*load, "measured", *map(seconds, percentiles(*measured))]
    yield [*load, "simulated", *map(seconds, percentiles(*simulated))]


def percentiles(first: Sequence[float], last: Sequence[float]) -> list[float]:
    """Returns p50 and p95 of the seconds to the first sound, then to the last."""
    return [percentile(sorted(values), share) for values in (first, last) for share in (0.5, 0.95)]


def seconds(value: float) -> str:
    return f"{value:.2f} s"


def plan(listeners: int, single: dict[str, Any], how: dict[str, Any], args: Namespace, best: float) -> list[str]:
    """Returns a row about the fewest replicas with which 95 of 100 requests are heard `within`."""
    rate, mean = listeners / args.every, statistics.mean(single["lengths"])
    fewest = max(1, int(rate * mean / (best / single["characters"])))
    number, step = fewest, max(1, fewest // 50)
    while (delays := first_sounds(number, rate, single, how))[1] > args.within:
        if number > 3 * fewest + 10:
            return [f"{listeners:,}", f"{rate:.1f}", "-", "-", "-", "-", "never so soon"]
        number += step
    made = rate * mean * single["characters"] * 3600  # characters an hour
    hours = number * 1e6 / made
    cost = f"{hours:.1f} hours" + (f", {hours * args.price:.2f}" if args.price is not None else "")
    busy = rate * mean / (number * best / single["characters"])
    return [f"{listeners:,}", f"{rate:.1f}", f"{number:,}", *map(seconds, delays), f"{100 * busy:.0f} %", cost]


def first_sounds(number: int, rate: float, single: dict[str, Any], how: dict[str, Any]) -> tuple[float, float]:
    """Returns p50 and p95 of the seconds to the first sound; a refused request counts as infinitely many."""
    part = min(1.0, MOST_SIMULATED / number)
    duration = max(60.0, 500 / (part * rate))  # s, for about 500 requests or more
    speeches = queueing.poisson(part * rate, duration, single["lengths"], seed=number)
    done = queueing.simulate(speeches, max(1, round(part * number)), **how)
    delays = sorted(float("inf") if speech.refused else speech.heard - speech.arrived for speech in done)
    return percentile(delays, 0.5), percentile(delays, 0.95)


if __name__ == "__main__":
    sys.exit(main())
