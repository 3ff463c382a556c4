"""Time to the first sound of a stream, and whether it plays without gaps; beside it the same text in one call.

    python benchmarks/benchmark_streaming.py --weights mini --lengths short paragraph
    python benchmarks/benchmark_streaming.py --weights published --first 0.5 1 2 --options quantize=int8
"""

from __future__ import annotations

import statistics
import sys
import time
from itertools import accumulate
from typing import Any

import meters
import report
import workload


def main(argv: list[str] | None = None) -> int:
    parser = report.arguments(__doc__)
    parser.add_argument("--model", choices=workload.FAMILIES, default="tts")
    parser.add_argument("--weights", default="random", help="random, published, mini, or a checkpoint folder")
    parser.add_argument("--lengths", nargs="+", default=["medium"], help=f"{', '.join(workload.TEXTS)}, or seconds")
    parser.add_argument("--first", nargs="+", type=float, default=[1.0], help="seconds: first_chunk of the stream")
    parser.add_argument("--options", nargs="+", default=[], help="as benchmark_comparison.py's")
    parser.add_argument("--repeats", type=report.count, default=3)
    args = report.parse(parser, argv)
    source = workload.weights(args.weights, args.model, args.size, args.work_dir)
    model = workload.speaker(source, args)
    rows = [row(model, source, length, first, args) for length in args.lengths for first in args.first]
    settings = dict(seed=workload.SEED, options=" ".join(args.options) or "defaults", repeats=args.repeats)
    report.publish(report.document("streaming", args, source, args.options, **settings) | {"rows": rows}, args.out)
    return 0


def row(model: Any, source: workload.Weights, length: str, first: float, args: Any) -> dict[str, Any]:
    spoken = workload.utterance(length)
    how = {"seed": workload.SEED} | ({"language_id": "en"} if args.model == "mtl" else {})
    if source.fixed:
        how["max_new_tokens"] = spoken.tokens
    once = "No." if not source.fixed else spoken.text
    model.generate(once, **how)  # lazy initialisation counts for neither
    whole, streams = [], []
    for _ in range(args.repeats):  # in turns, so that other load on the machine affects both
        whole.append(meters.timed(lambda: model.generate(spoken.text, **how), args.device)[0])
        streams.append(listen(model.generate_stream(spoken.text, first_chunk=first, **how), model.sr))
    out = {
        "length": length,
        "first_chunk": first,
        "speech_seconds": streams[0]["speech_seconds"],
        "chunks": streams[0]["chunks"],
        "whole_seconds": report.spread(whole),
        **{key: report.spread(s[key] for s in streams) for key in ("first_seconds", "last_seconds", "gap_seconds")},
    }
    out["sooner"] = statistics.median(whole) / out["first_seconds"]["median"]
    workload.say(
        f"{length}, first chunk of {first:g} s: heard after {out['first_seconds']['median']:.2f} s, "
        f"in one call after {out['whole_seconds']['median']:.2f} s"
    )
    return out


def listen(stream: Any, rate: int) -> dict[str, Any]:
    """Returns the times of a listener who plays each chunk right after the one before it."""
    begin = time.perf_counter()
    came, lengths = [], []
    for chunk in stream:
        came.append(time.perf_counter() - begin)
        lengths.append(chunk.shape[1] / rate)
    due = [came[0] + played for played in accumulate(lengths[:-1], initial=0.0)]
    return {
        "first_seconds": came[0],
        "last_seconds": came[-1],
        "gap_seconds": max(a - d for a, d in zip(came, due)),  # total silence, if chunks come late
        "speech_seconds": sum(lengths),
        "chunks": len(lengths),
    }


if __name__ == "__main__":
    sys.exit(main())
