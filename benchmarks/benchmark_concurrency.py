"""Concurrent callers: sentences per minute of all together, the time to the first sound, and gaps in playback.

    python benchmarks/benchmark_concurrency.py --weights mini
    python benchmarks/benchmark_concurrency.py --weights mini --before ../an-older-checkout
    python benchmarks/benchmark_concurrency.py --model turbo --weights random --options quantize=int8 --modes tokens

Every caller is a thread that asks for one sentence after another. Every row is measured in a new process. With
`--before`, a checkout of this package, the two take turns, each of them first every other time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import plots
import report
import workload
from benchmark_server import percentile
from benchmark_streaming import listen

TEXTS = (
    "The quick brown fox jumps over the lazy dog near the river bank.",
    "She sells sea shells by the sea shore every summer morning.",
    "A journey of a thousand miles begins with a single step today.",
    "All that glitters is not gold, as the old saying goes on.",
    "The rain in Spain stays mainly in the plain all through May.",
    "Every good boy does fine when he practices all his scales.",
    "It was the best of times and it was the worst of times.",
    "Please remember to bring your umbrella when you leave home.",
)
MODES = ("calls", "streams", "tokens")


def main(argv: list[str] | None = None) -> int:
    parser = report.arguments(__doc__)
    parser.add_argument("--model", choices=workload.FAMILIES, default="tts")
    parser.add_argument("--weights", default="mini", help="mini, random, published, or a checkpoint folder")
    parser.add_argument("--options", nargs="+", default=[], help="as benchmark_comparison.py's")
    parser.add_argument("--callers", nargs="+", type=report.count, default=[1, 2, 4, 8, 16])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["calls", "streams"])
    parser.add_argument("--each", type=report.count, default=2, help="sentences per caller")
    parser.add_argument("--tokens", type=report.count, default=75, help="of a sentence, where weights are random")
    parser.add_argument("--before", help="a checkout of this package to be measured beside it")
    parser.add_argument("--repeats", type=report.count, default=3, help="turns of each row, whose medians are shown")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = report.parse(parser, argv)
    source = workload.weights(args.weights, args.model, args.size, args.work_dir)
    if args.row:
        mode, callers = args.row.split(":")
        print(json.dumps(measure(workload.speaker(source, args), source, mode, int(callers), args)))
        return 0
    sides = {"now": workload.ROOT} | ({"before": workload.checkout(args.before)} if args.before else {})
    rows = []
    for mode in args.modes:
        for callers in args.callers:
            turns: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
            for turn in range(args.repeats):
                for side in reversed(sides) if turn % 2 == 0 else sides:
                    turns[side].append(in_new_process(mode, callers, sides[side], source, args))
            for side in reversed(sides):
                rows.append(medians(turns[side]) | {"side": side, "mode": mode, "callers": callers})
                show(rows[-1])
    options = " ".join(args.options) or "defaults"
    settings = dict(each=args.each, options=options, texts=len(TEXTS), turns=args.repeats)
    if args.before:
        settings["before"] = workload.commit(args.before)
    document = report.document("concurrency", args, source, args.options, **settings) | {"rows": rows}
    path = report.publish(document, args.out)
    plots.safely(plots.concurrency, document, path.with_suffix(".png"))
    return 0


def in_new_process(mode: str, callers: int, tree: Path, source: workload.Weights, args: Any) -> dict[str, Any]:
    """Returns a row that does not depend on earlier ones: nothing is warm, and no memory is in use. Both sides read the
    same random weights."""
    weights = str(source.folder if source.kind == "random" else args.weights)
    command = [sys.executable, __file__, "--model", args.model, "--weights", weights, "--size", args.size]
    command += ["--device", args.device, "--work-dir", str(args.work_dir), "--each", str(args.each)]
    command += ["--tokens", str(args.tokens), "--row", f"{mode}:{callers}"]
    command += ["--options", *args.options] if args.options else []
    command += ["--threads", str(args.threads)] if args.threads else []
    environment = os.environ | {workload.MEASURED: os.path.abspath(tree)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{tree.name}, {mode} of {callers}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(model: Any, source: workload.Weights, mode: str, callers: int, args: Any) -> dict[str, Any]:
    fixed = {"max_new_tokens": args.tokens} if source.fixed else {}
    fixed |= {"language_id": "en"} if args.model == "mtl" else {}

    def ask(number: int) -> dict[str, float]:
        """Returns the seconds to the first and the last sound, of speech, and of silence while it plays."""
        text = TEXTS[number % len(TEXTS)]
        if mode == "streams":
            heard = listen(model.generate_stream(text, seed=number, **fixed), model.sr)
            return {key: heard[f"{key}_seconds"] for key in ("first", "last", "speech", "gap")}
        begin = time.perf_counter()
        if mode == "calls":
            speech = model.generate(text, seed=number, **fixed).shape[1] / model.sr
        else:
            speech = len(model.generate_tokens(text, seed=number, **fixed)) / workload.TOKEN_RATE
        took = time.perf_counter() - begin
        return {"first": took, "last": took, "speech": speech, "gap": 0.0}

    def caller(first: int) -> list[dict[str, float]]:
        return [ask(first + k) for k in range(args.each)]

    model.warmup(callers)
    ask(0)  # lazy initialisation counts for no caller
    begin = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        answers = [answer for own in pool.map(caller, range(callers)) for answer in own]
    return summary(answers, time.perf_counter() - begin)


def medians(turns: list[dict[str, Any]]) -> dict[str, Any]:
    return {figure: statistics.median(turn[figure] for turn in turns) for figure in turns[0]}


def summary(answers: list[dict[str, float]], seconds: float) -> dict[str, Any]:
    first = sorted(a["first"] for a in answers)
    return {
        "sentences": len(answers),
        "sentences_per_minute": 60 * len(answers) / seconds,
        "speech_per_second": sum(a["speech"] for a in answers) / seconds,
        "first_p50": statistics.median(first),
        "first_p95": percentile(first, 0.95),
        "rtf_p50": statistics.median(a["last"] / a["speech"] for a in answers),
        "gap_p50": statistics.median(a["gap"] for a in answers),
        "seconds": seconds,
    }


def show(row: dict[str, Any]) -> None:
    workload.say(
        f"{row['side']}, {row['mode']} of {row['callers']}: {row['sentences_per_minute']:.0f} sentences a minute, "
        f"first sound {row['first_p50']:.2f} s (p95 {row['first_p95']:.2f} s)"
    )


if __name__ == "__main__":
    sys.exit(main())
