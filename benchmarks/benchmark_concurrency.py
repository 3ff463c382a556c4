"""Callers at once: how many sentences they are spoken in all, how soon each hears something, and whether it plays on.

    python benchmarks/benchmark_concurrency.py --weights mini
    python benchmarks/benchmark_concurrency.py --weights mini --before ../an-older-checkout
    python benchmarks/benchmark_concurrency.py --model turbo --options quantize=int8 --modes tokens --callers 1 4

Every caller is a thread that asks for one sentence after another. `--before` names a checkout of this package: the same
is measured with it, in a process of its own and by turns with this one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import plots
import report
import workload
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
    parser.add_argument("--callers", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["calls", "streams"])
    parser.add_argument("--each", type=int, default=2, help="sentences per caller")
    parser.add_argument("--tokens", type=int, default=75, help="of a sentence, where weights are random")
    parser.add_argument("--before", help="a checkout of this package to be measured beside it")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = report.parse(parser, argv)
    source = workload.weights(args.weights, args.model, args.size, args.work_dir)
    if args.row:
        mode, callers = args.row.split(":")
        print(json.dumps(measure(load(source, args), source, mode, int(callers), args)))
        return 0
    rows = []
    for mode in args.modes:
        for callers in args.callers:
            for side in ["before", "now"] if args.before else ["now"]:
                rows.append(elsewhere(mode, callers, side, args) | {"side": side, "mode": mode, "callers": callers})
                say(rows[-1])
    document = {
        "benchmark": "concurrency",
        "label": report.label(args.model, args.size, source, *args.options),
        "command": args.command,
        "environment": workload.environment(args.device),
        "settings": {
            "model": args.model, "weights": source.kind, "size": args.size, "each": args.each,
            "options": " ".join(args.options) or "defaults", "texts": len(TEXTS),
        },
        "rows": rows,
    }
    path = report.publish(document, args.out)
    plots.safely(plots.concurrency, document, path.with_suffix(".png"))
    return 0


def elsewhere(mode: str, callers: int, side: str, args: Any) -> dict[str, Any]:
    """A row, measured in a process of its own: nothing of an earlier one is warm or in the way."""
    command = [sys.executable, __file__, "--model", args.model, "--weights", str(args.weights), "--size", args.size]
    command += ["--device", args.device, "--work-dir", str(args.work_dir), "--each", str(args.each)]
    command += ["--tokens", str(args.tokens), "--row", f"{mode}:{callers}"]
    command += ["--options", *args.options] if args.options else []
    command += ["--threads", str(args.threads)] if args.threads else []
    tree = args.before if side == "before" else str(workload.ROOT)
    environment = os.environ | {workload.MEASURED: os.path.abspath(tree)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side}, {mode} of {callers}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def load(source: workload.Weights, args: Any) -> Any:
    model = workload.load(source, args.device, **workload.switches(args.options))
    if source.kind != "mini":  # which speaks in its own voice
        model.conds = model.prepare_voice(workload.voice_file(args.work_dir))
    model.warmup()
    return model


def measure(model: Any, source: workload.Weights, mode: str, callers: int, args: Any) -> dict[str, Any]:
    fixed = {"max_new_tokens": args.tokens} if source.fixed else {}
    fixed |= {"language_id": "en"} if args.model == "mtl" else {}
    said: list[dict[str, Any]] = []

    def whole(k: int) -> dict[str, Any]:
        begin = time.perf_counter()
        wave = model.generate(TEXTS[k % len(TEXTS)], seed=k, **fixed)
        took = time.perf_counter() - begin
        return {"first": took, "last": took, "speech": wave.shape[1] / model.sr, "gap": 0.0}

    def stream(k: int) -> dict[str, Any]:
        heard = listen(model.generate_stream(TEXTS[k % len(TEXTS)], seed=k, **fixed), model.sr)
        return {"first": heard["first_seconds"], "last": heard["last_seconds"], "speech": heard["speech_seconds"],
                "gap": heard["gap_seconds"]}

    def tokens(k: int) -> dict[str, Any]:
        begin = time.perf_counter()
        drawn = model.generate_tokens(TEXTS[k % len(TEXTS)], seed=k, **fixed)
        took = time.perf_counter() - begin
        return {"first": took, "last": took, "speech": len(drawn) / workload.TOKEN_RATE, "gap": 0.0}

    ask = {"calls": whole, "streams": stream, "tokens": tokens}[mode]
    ask(0)  # lazy initialisation is nobody's

    def caller(i: int) -> None:
        said.extend(ask(i + k) for k in range(args.each))

    return summary(said, together(caller, callers))


def together(work: Callable[[int], None], count: int) -> float:
    """Seconds that so many threads take."""
    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begin


def summary(said: list[dict[str, Any]], wall: float) -> dict[str, Any]:
    first = sorted(s["first"] for s in said)
    return {
        "sentences": len(said),
        "sentences_per_minute": 60 * len(said) / wall,
        "speech_per_second": sum(s["speech"] for s in said) / wall,
        "first_p50": statistics.median(first),
        "first_p95": first[min(len(first) - 1, int(0.95 * len(first)))],
        "rtf_p50": statistics.median(s["last"] / s["speech"] for s in said),
        "gap_p50": statistics.median(s["gap"] for s in said),
        "seconds": wall,
    }


def say(row: dict[str, Any]) -> None:
    workload.say(
        f"{row['side']}, {row['mode']} of {row['callers']}: {row['sentences_per_minute']:.0f} sentences a minute, "
        f"first sound {row['first_p50']:.2f} s (p95 {row['first_p95']:.2f} s)"
    )


if __name__ == "__main__":
    sys.exit(main())
