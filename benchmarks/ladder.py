"""What each technique gives: from all off to the defaults, one field of EngineOptions at a time; then single options.

    python benchmarks/ladder.py                        # English, random weights, best device
    python benchmarks/ladder.py --model turbo --out benchmarks/results

Every rung keeps what earlier rungs switched on. What EngineOptions calls exact is checked in the same run: the tokens
must equal those of the rung before. The options after the ladder are measured one by one, on top of the defaults.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from typing import Any

import meters
import report
import workload

STAGES = ("tokens", "mel", "wav", "watermark")


@dataclasses.dataclass(frozen=True)
class Rung:
    name: str
    fields: dict[str, Any]  # of EngineOptions
    exact: bool  # must draw the tokens of the rung before
    steps: int | None = None  # n_cfm_timesteps
    seconds: float | None = None


# Exact ones first, so that they are compared in float32. `None`: the device's default.
CLIMB: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("voice prefix kept", ("prefix_cache",), True),
    ("products of few rows turned round", ("few_rows",), True),
    ("vocoder convolutions with half the products", ("short_convs",), True),
    ("attention", ("attention",), True),
    ("runaway guard", ("runaway_guard",), True),  # exact unless it stops a row, and it stops none here
    ("Triton kernels", ("kernels",), True),
    ("mel lengths in buckets", ("mel_bucket",), True),
    ("steps recorded", ("compile",), True),  # as CUDA graphs, or traced on a CPU
    ("end of speech polled in blocks", ("poll_every",), True),
    ("T3 in half precision", ("dtype",), False),
    ("S3Gen in half precision", ("s3gen_dtype",), False),
)
ALONE: tuple[tuple[str, dict[str, Any], bool, int | None], ...] = (
    ("T3 in int8", {"quantize": "int8"}, False, None),
    ("T3 in int8, steps not recorded", {"quantize": "int8", "compile": None}, False, None),
    ("T3 in int4", {"quantize": "int4"}, False, None),
    ("torch.compile instead of graphs", {"compile": "reduce-overhead"}, True, None),
    ("6 Euler steps, more of them early", {"cfm_schedule": "sway"}, False, 6),
    ("no guidance in the last 3 steps", {"cfg_off_last": 3}, False, None),
    ("voice prompt of 5 s", {"prompt_seconds": 5.0}, False, None),
    ("flow in int8", {"flow_int8": True}, False, None),
    ("int8, 6 steps, 5 s prompt", {"quantize": "int8", "cfm_schedule": "sway", "prompt_seconds": 5.0}, False, 6),
)
CPU_ONLY = {"few_rows", "short_convs"}
FLOAT32 = {"dtype": "float32", "s3gen_dtype": "float32"}
UNMEASURED = {  # fields without a rung, and why
    "captures": "what of the rung of CUDA graphs is left out, where a device does not bear it",
    "trial": "how it is found out what a device bears; no part of a call",
    "slots": "how many utterances run side by side: benchmark_inference.py --batch",
    "cache_len": "a limit, not a speed",
    "wav_chunk": "bounds memory from 40 s of audio on",
    "flow_steps": "the same as n_cfm_timesteps, which the rung of 6 steps sets",
    "resampler": "part of preparing a voice: benchmark_inference.py --stage voice",
}


def rungs(device: str, meanflow: bool) -> list[Rung]:
    """Returns the rungs that change something on this device."""
    import torch

    from chatterbox_opt.engine.resolve import resolve
    from chatterbox_opt.options import EngineOptions

    where = torch.device(device)
    defaults = resolve(EngineOptions(trial="here"), where)  # in its own process, which would slow down each rung
    now = resolve(EngineOptions.exact(resampler=defaults.resampler), where)
    out = [Rung("all off: eager float32", vars(now) | {}, False)]
    for name, fields, exact in CLIMB:
        changes = {f: getattr(defaults, f) for f in fields if getattr(defaults, f) != getattr(now, f)}
        if changes and (device == "cpu" or not CPU_ONLY & set(changes)):
            now = now.replace(**changes)
            out.append(Rung(f"{name}: {shown(changes)}", vars(now) | {}, exact))
    for name, changes, exact, steps in ALONE:
        guided_only = {"cfm_schedule", "cfg_off_last"} & set(changes)
        if (meanflow and (guided_only or steps)) or (changes.get("compile") and device == "cpu"):
            continue
        out.append(Rung(f"{name}", vars(defaults.replace(**changes)) | {}, exact, steps))
    return out


def shown(changes: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in changes.items())


def main(argv: list[str] | None = None) -> int:
    parser = report.arguments(__doc__)
    parser.add_argument("--model", choices=workload.FAMILIES, default="tts")
    parser.add_argument("--seconds", type=report.positive, help="of speech (CPU 1, else 10)")
    parser.add_argument("--repeats", type=report.count, help="CPU 1, else 5")
    parser.add_argument(
        "--budget", type=report.positive, help="minutes after which no further rung is begun (CPU 13, else 60)"
    )
    args = report.parse(parser, argv)
    on_cpu = args.device == "cpu"
    args.seconds = args.seconds or (1.0 if on_cpu else 10.0)
    args.repeats = args.repeats or (1 if on_cpu else 5)
    until = time.perf_counter() + 60 * (args.budget or (13.0 if on_cpu else 60.0))

    source = workload.weights("random", args.model, args.size, args.work_dir)
    spoken = workload.utterance(f"{args.seconds:g}")
    rows: list[dict[str, Any]] = []
    tokens: list[int] = []  # of the last rung in float32
    before: list[int] = []  # of the last rung
    skipped = []
    for rung in rungs(args.device, args.model in ("turbo", "nano")):
        if time.perf_counter() > until and rows:
            skipped.append(rung.name)
            continue
        try:
            row, drawn = measure(rung, source, spoken, args)
        except (ValueError, RuntimeError) as error:
            workload.say(f"{rung.name}: {error}")
            rows.append({"name": rung.name, "failed": str(error)[:300]})
            continue
        alone = rung.name in {name for name, *_ in ALONE}
        row |= {"kind": "alone" if alone else "ladder" if rows else "reference", "exact": rung.exact}
        if rung.exact and alone:  # promised in float32: other roundings draw other tokens
            in_float32 = dataclasses.replace(rung, fields=rung.fields | FLOAT32)
            drawn = measure(in_float32, source, spoken, args, timed=False)[1]
        row["same_tokens"] = drawn == (tokens if alone else before) if rung.exact else None
        before = before if alone else drawn
        if not alone and rung.fields["dtype"] == "float32":
            tokens = drawn
        rows.append(row)
        workload.say(line(row))
    finish(rows)
    document = report.document("ladder", args, source, voice_seconds=12) | {
        "speech_seconds": spoken.seconds,
        "rows": rows,
        "skipped": skipped,
        "exact_holds": all(r["same_tokens"] for r in rows if r.get("exact")),
    }
    report.publish(document, args.out)
    return 0 if document["exact_holds"] else 1


def measure(
    rung: Rung, source: workload.Weights, spoken: workload.Utterance, args: Any, timed: bool = True
) -> tuple[dict[str, Any], list[int]]:
    """Returns (figures, drawn tokens). Not `timed`: a single call, for its tokens."""
    from chatterbox_opt.options import EngineOptions

    meters.free(args.device)
    model = workload.load(source, args.device, EngineOptions(**rung.fields))
    meters.reset_peak(args.device)
    voice_seconds, voice = meters.timed(lambda: model.prepare_voice(workload.voice_file(args.work_dir)), args.device)
    jobs = model.jobs(
        [spoken.text],
        voices=voice,
        seeds=workload.SEED,
        max_new_tokens=spoken.tokens,
        language_ids="en" if args.model == "mtl" else None,
    )

    def speak() -> Any:
        return model.speak(jobs, n_cfm_timesteps=rung.steps)[0]

    first, speech = meters.timed(speak, args.device)
    drawn = [int(t) for piece in speech.tokens for t in piece]
    if not timed:
        return {}, drawn
    runs = [meters.timed(speak, args.device) for _ in range(args.repeats)]
    stages = {s: statistics.median(r.seconds.get(s, 0.0) for _, r in runs) for s in STAGES}
    row = {
        "name": rung.name,
        "first_seconds": first,
        "seconds": report.spread(s for s, _ in runs),
        "stages": stages,
        "ms_per_token": 1000 * stages["tokens"] / spoken.tokens,
        "voice_seconds": voice_seconds,
        "n_cfm_timesteps": rung.steps,
        **meters.memory(args.device),
    }
    return row, drawn


def finish(rows: list[dict[str, Any]]) -> None:
    """Adds ratios to everything off, and to the rung before (for single options: to the defaults)."""
    done = [r for r in rows if "failed" not in r]
    defaults = next((r for r in reversed(done) if r["kind"] != "alone"), None)
    before = None
    for r in done:
        against = defaults if r["kind"] == "alone" else before
        r["ratio"] = done[0]["seconds"]["median"] / r["seconds"]["median"]
        r["step"] = against["seconds"]["median"] / r["seconds"]["median"] if against else 1.0
        before = r


def line(r: dict[str, Any]) -> str:
    check = {None: "", True: ", same tokens", False: ", OTHER TOKENS THOUGH EXACT"}[r["same_tokens"]]
    return f"{r['name']}: {r['seconds']['median']:.2f} s ({r['ms_per_token']:.1f} ms a token){check}"


if __name__ == "__main__":
    sys.exit(main())
