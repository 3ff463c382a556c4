"""Baseline (the real chatterbox-tts) against optimized: same weights, texts, voice and seed, in one run.

    python benchmarks/benchmark_comparison.py                       # English, random weights, best device
    python benchmarks/benchmark_comparison.py --model turbo --options quantize=int8 --out benchmarks/results
    python benchmarks/benchmark_comparison.py --options default --options quantize=int8    # two optimized sides

With random weights every utterance has a fixed number of tokens, so both sides do equal work. The sides take turns,
utterance by utterance. Figures are medians over the turns within the time budget; the range of a ratio is over the same
turns.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import plots
import report
import workload
from sides import HOW_TO_INSTALL, STAGES, Remote

COLD_SECONDS = "1"  # of speech in the very first call
BUDGET = {"cpu": 12.0}  # minutes; other devices need none


def main(argv: list[str] | None = None) -> int:
    parser = report.arguments(__doc__)
    parser.add_argument("--model", choices=workload.FAMILIES, default="tts")
    parser.add_argument("--weights", default="random", help="random, published, mini, or a checkpoint folder")
    parser.add_argument("--lengths", nargs="+", help=f"{', '.join(workload.TEXTS)}, or seconds of speech")
    parser.add_argument("--repeats", type=report.count, help="turns for each length")
    parser.add_argument(
        "--options",
        nargs="+",
        action="append",
        metavar="FIELD=VALUE",
        help="exact, default, preset=, decoder=, or fields of EngineOptions; given again: another optimized side",
    )
    parser.add_argument("--preset", nargs="+", default=[], help="an optimized side for each, as --options preset=NAME")
    parser.add_argument(
        "--baseline",
        choices=("upstream", "exact", "none"),
        default="upstream",
        help="exact: our own EngineOptions.exact() stands in",
    )
    parser.add_argument("--budget", type=report.positive, help="minutes after which no further turn is begun (CPU: 12)")
    args = report.parse(parser, argv)
    on_cpu = args.device == "cpu"
    args.lengths = args.lengths or (["short", "medium"] if on_cpu else list(workload.TEXTS))
    args.repeats = args.repeats or (3 if on_cpu else 7)
    args.budget = args.budget or BUDGET.get(args.device, 60.0)
    started = time.perf_counter()

    source = workload.weights(args.weights, args.model, args.size, args.work_dir)
    sides, notes = make_sides(args, source)
    try:
        cold = {side.name: start_cold(side, args, source) for side in sides}
        runs = take_turns(sides, args, source, started)
    finally:
        for side in sides:
            side.close()

    settings = dict(
        fixed_lengths=source.fixed, seed=workload.SEED, voice_seconds=None if source.kind == "mini" else 12,
        minutes=(time.perf_counter() - started) / 60,
    )
    document = report.document("comparison", args, source, **settings) | {"notes": notes}
    document |= summarise(sides, cold, runs)
    path = report.result_path(document, args.out)
    keep_wavs(args, path.parent)
    report.publish(document, args.out)
    plots.safely(plots.comparison, document, path.with_suffix(".png"))
    return 0 if all(side.failed is None for side in sides) else 1


def make_sides(args: Any, source: workload.Weights) -> tuple[list[Remote], list[str]]:
    notes = []
    sides = []
    if args.baseline == "exact":
        sides.append(Remote("baseline", "optimized", ["exact"]))
        notes.append("The baseline is this package's own exact mode, not chatterbox-tts.")
    elif args.baseline == "upstream":
        missing = importlib.util.find_spec("chatterbox") is None
        if missing:
            notes.append("Ours alone: " + HOW_TO_INSTALL)
            workload.say(notes[-1])
        else:
            sides.append(Remote("baseline", "baseline", []))
    if sides and args.model == "mtl":
        notes.append("Baseline without the wheel's alignment analyzer, which later upstream dropped.")
    if sides and assembled(source):
        notes.append("Baseline: upstream's own parts put together at these sizes; its classes load published ones.")
    for i, options in enumerate([*(args.options or []), *([f"preset={name}"] for name in args.preset)] or [[]]):
        name = "optimized" if i == 0 else f"optimized, {' '.join(options)}"
        sides.append(Remote(name, "optimized", options))
    return sides, notes


def assembled(source: workload.Weights) -> bool:
    """Sizes that chatterbox-tts 0.1.7 cannot load by itself: it has no Nano, and reads no config.json."""
    return source.family == "nano" or (source.folder is not None and (source.folder / "config.json").exists())


def start_cold(side: Remote, args: Any, source: workload.Weights) -> dict[str, Any]:
    """Measures from the start of the process to the first sound, one side at a time."""
    workload.say(f"{side.name}: cold start")
    side.start()
    first = workload.utterance(COLD_SECONDS)
    load = side.ask(
        "load",
        family=source.family,
        folder=str(source.folder) if source.folder else None,
        assembled=assembled(source),
        device=args.device,
        threads=args.threads,
    )
    loaded = side.age
    clones = source.kind != "mini"  # which speaks in its own voice
    voice = side.ask("voice", path=str(workload.voice_file(args.work_dir))) if clones else {}
    spoken = side.ask("speak", text=first.text, seed=workload.SEED, tokens=first.tokens if source.fixed else None)
    record = {
        "import_and_load": loaded,
        "voice": voice.get("seconds"),
        "first_audio": side.age,
        "first_utterance": spoken.get("seconds"),
        "memory": {k: load.get(k) for k in ("empty", "loaded")},
        "options": load.get("options"),
    }
    again = side.ask("voice", path=str(workload.voice_file(args.work_dir, variant=1))) if clones else {}
    record["another_voice"] = again.get("seconds")
    return record


def take_turns(sides: list[Remote], args: Any, source: workload.Weights, started: float) -> dict[str, Any]:
    """Returns {length: {side: [answers]}}. The first answer per length is a warm-up where something is captured."""
    spoken = {name: workload.utterance(name) for name in args.lengths}
    runs: dict[str, Any] = {name: {side.name: [] for side in sides} for name in spoken}
    warm = args.device != "cpu"
    rate = 0.0  # seconds per turn and second of speech, the slowest so far
    for turn in range(-1 if warm else 0, args.repeats):
        for name, u in spoken.items():
            left = args.budget * 60 - (time.perf_counter() - started)
            if rate * u.seconds > left and (turn > 0 or any(any(r.values()) for r in runs.values())):
                continue
            begin = time.perf_counter()
            for side in sides if turn % 2 == 0 else reversed(sides):
                wav = args.work_dir / "wav" / f"{workload.slug(side.name)}_{workload.slug(name)}.wav"
                answer = side.ask(
                    "speak",
                    text=u.text,
                    seed=workload.SEED + max(0, turn),
                    wav=str(wav) if turn <= 0 else None,
                    tokens=u.tokens if source.fixed else None,
                )
                if "error" not in answer:
                    runs[name][side.name].append(answer | {"warmup": turn < 0})
                    which = "warm-up" if turn < 0 else f"turn {turn + 1}"
                    workload.say(f"{name}, {which}: {side.name} {answer['seconds']:.2f} s")
            rate = max(rate, (time.perf_counter() - begin) / u.seconds)
    return runs


def keep_wavs(args: Any, folder: Path) -> None:
    made = args.work_dir / "wav"
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(made.glob("*.wav")) if made.is_dir() else []:
        (folder / name.name).write_bytes(name.read_bytes())
        name.unlink()


# ---- results -------------------------------------------------------------------------------------


def summarise(sides: list[Remote], cold: dict[str, Any], runs: dict[str, Any]) -> dict[str, Any]:
    rows, ratios = [], []
    for length, by_side in runs.items():
        for name, answers in by_side.items():
            steady = [a for a in answers if not a["warmup"]]
            if steady:
                rows.append(row(length, name, steady, next((a for a in answers if a["warmup"]), None)))
        ratios += ratios_of(length, by_side)
    memory = {name: peaks(cold[name], runs, name) for name in cold}
    return {
        "sides": {
            side.name: {"options": cold[side.name].pop("options"), "asked": side.options, "failed": side.failed}
            for side in sides
        },
        "cold": cold,
        "rows": rows,
        "ratios": ratios,
        "memory": memory,
        "equal_work": equal_work(runs),
    }


def row(length: str, side: str, steady: list[dict], warmup: dict | None) -> dict[str, Any]:
    speech = [a["tokens"] / workload.TOKEN_RATE for a in steady]
    return {
        "length": length,
        "side": side,
        "speech_seconds": statistics.median(speech),
        "seconds": report.spread(a["seconds"] for a in steady),
        "rtf": report.spread(a["seconds"] / max(s, 0.04) for a, s in zip(steady, speech)),
        "stages": {s: statistics.median(a["stages"][s] for a in steady) for s in (*STAGES, "other")},
        "warmup_seconds": warmup and warmup["seconds"],
    }


def ratios_of(length: str, by_side: dict[str, list[dict]]) -> list[dict[str, Any]]:
    """Returns the speed-up per second of speech, from turns next to each other."""
    rtf = {
        name: [a["seconds"] / max(1, a["tokens"]) for a in answers if not a["warmup"]]
        for name, answers in by_side.items()
    }
    base = rtf.pop("baseline", [])
    return [
        {
            "length": length,
            "side": name,
            "ratio": statistics.median(base) / statistics.median(own),
            "low": min(b / o for b, o in zip(base, own)),
            "high": max(b / o for b, o in zip(base, own)),
            "turns": min(len(base), len(own)),
        }
        for name, own in rtf.items()
        if base and own
    ]


def peaks(cold: dict[str, Any], runs: dict[str, Any], side: str) -> dict[str, Any]:
    seen = [a["memory"] for by_side in runs.values() for a in by_side.get(side, [])]
    empty, loaded = cold["memory"]["empty"] or {}, cold["memory"]["loaded"] or {}
    out = {
        "empty_torch_rss_mb": empty.get("rss_mb"),
        "loaded_rss_mb": loaded.get("rss_mb"),
        "peak_loading_rss_mb": loaded.get("peak_rss_mb"),
    }
    for key in ("peak_rss_mb", "peak_vram_mb"):
        if any(key in m for m in seen):
            out[key] = max(m[key] for m in seen)
    return out


def equal_work(runs: dict[str, Any]) -> bool:
    counts = [{a["tokens"] for answers in by_side.values() for a in answers} for by_side in runs.values()]
    near = (len(c) <= 1 or max(c) - min(c) <= 2 for c in counts)  # each piece of a long text is rounded up
    return any(counts) and all(near)


if __name__ == "__main__":
    sys.exit(main())
