"""chatterbox_opt alone: the speed of every stage by precision and batch, beside its upper bound.

    python benchmarks/benchmark_inference.py                                              # all stages, best device
    python benchmarks/benchmark_inference.py --stage tokens --precision float32 int8 --batch 1 8
    python benchmarks/benchmark_inference.py --family turbo --stage mel wav --out benchmarks/results

The bound of a stage is its arithmetic over the device's matrix-product rate, or its bytes over the device's read
bandwidth, whichever takes longer; both rates are measured in the same run. First calls are reported separately.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import meters
import report
import tables
import workload

from chatterbox_opt.doctor import ceilings

STAGES = ("tokens", "mel", "wav", "voice", "watermark")
PRECISIONS = ("float32", "bfloat16", "float16", "int8", "int4")
TEXT = workload.TEXTS["medium"][1]
PROMPT_SECONDS = 10.0  # what S3Gen takes of a recording


def main(argv: list[str] | None = None) -> int:
    parser = report.arguments(__doc__)
    parser.add_argument("--stage", nargs="+", choices=(*STAGES, "all"), default=["all"])
    parser.add_argument("--family", dest="model", choices=workload.FAMILIES, default="tts")
    parser.add_argument(
        "--precision", nargs="+", choices=PRECISIONS, help="CPU: float32, its half precision, int8, int4"
    )
    parser.add_argument("--batch", nargs="+", type=report.count, help="CPU: 1 2 8, sound 1; else 1 2 8 32 64")
    parser.add_argument(
        "--tokens", type=report.count, help="drawn in a steady run (CPU 32, else 201) and rendered (CPU 50, else 250)"
    )
    parser.add_argument("--prompt", type=float, default=12.0, help="seconds of the voice's recording")
    parser.add_argument("--repeats", type=report.count, help="CPU 2, else 7")
    parser.add_argument(
        "--budget", type=report.positive, help="minutes after which no further figure is begun (CPU 12, else 60)"
    )
    args = report.parse(parser, argv)
    on_cpu = args.device == "cpu"
    args.stage = list(STAGES) if "all" in args.stage else args.stage
    args.precision = args.precision or default_precisions(args.device)
    # a CPU renders the utterances of a batch one after another, so larger batches add no information
    args.sound_batch = args.batch or ([1] if on_cpu else [1, 2, 8, 32, 64])
    args.batch = args.batch or ([1, 2, 8] if on_cpu else [1, 2, 8, 32, 64])
    args.repeats = args.repeats or (2 if on_cpu else 7)
    args.budget = args.budget or (12.0 if on_cpu else 60.0)
    args.until = time.perf_counter() + 60 * args.budget

    machine = ceilings.measure(args.device, quick=args.size == "tiny")
    workload.say(
        f"measured here: {machine.read_gb:.1f} GB/s read, "
        + ", ".join(f"{d} {machine.gflops[d]:,.0f} GFLOP/s" for d in ("float32", "bfloat16", "int8"))
    )
    bench = Bench(args, machine)
    bench.print_ceilings()
    for precision in args.precision:
        bench.run(precision)

    named = args.stage if len(args.stage) < len(STAGES) else []
    document = report.document("inference", args, bench.source, named, prompt_seconds=args.prompt) | {
        "machine": {"read_gb_per_s": machine.read_gb, "gflops": machine.gflops},
        "ceilings": bench.floors,
        "rows": bench.rows,
        "logits": bench.logits,
        "skipped": bench.skipped,
    }
    report.publish(document, args.out)
    return 0


def default_precisions(device: str) -> list[str]:
    if device != "cpu":
        return ["float32", "bfloat16", "int8"]
    import torch

    from chatterbox_opt.engine.resolve import resolve
    from chatterbox_opt.options import EngineOptions

    usual = resolve(EngineOptions(), torch.device("cpu")).dtype
    return ["float32", *([usual] if usual != "float32" else []), "int8", "int4"]


class Bench:
    def __init__(self, args: Any, machine: ceilings.Machine) -> None:
        from chatterbox_opt.config import MODELS, tiny

        self.args, self.machine, self.device = args, machine, args.device
        self.source = workload.weights("random", args.model, args.size, args.work_dir)
        self.config = MODELS[args.model] if args.size == "full" else tiny(args.model)
        self.language = "en" if args.model == "mtl" else None
        self.voice_path = workload.voice_file(args.work_dir, args.prompt)
        self.drawn = args.tokens or (32 if args.device == "cpu" else 201)
        self.rendered = args.tokens or (50 if args.device == "cpu" else 250)
        self.rows: list[dict[str, Any]] = []
        self.floors: list[dict[str, Any]] = []
        self.logits: list[dict[str, Any]] = []
        self.skipped: list[str] = []
        self.reference: Any = None

    # ---- ceilings --------------------------------------------------------------------------------

    def print_ceilings(self) -> None:
        for stage in self.args.stage:
            for precision in self._precisions_of(stage):
                for batch in self._batches_of(stage):
                    floor, by, flops, size = self.floor(stage, precision, batch)
                    self.floors.append(
                        {
                            "stage": stage,
                            "precision": precision,
                            "batch": batch,
                            "seconds": floor,
                            "bound_by": by,
                            "gflop": flops / 1e9,
                            "mb": size / 1e6,
                        }
                    )
        workload.say(tables.ceiling_table(self.floors) + "\n")

    def _precisions_of(self, stage: str) -> list[str]:
        """S3Gen has no int8 and no packed weights; voices and watermarks always run in float32."""
        asked = self.args.precision
        if stage == "tokens":
            return list(asked)
        if stage in ("mel", "wav"):
            return [p for p in asked if p == self._compute_dtype(p)] or ["float32"]
        return ["float32"]

    def _batches_of(self, stage: str) -> list[int]:
        return {"voice": [1], "mel": self.args.sound_batch, "wav": self.args.sound_batch}.get(stage, self.args.batch)

    def floor(self, stage: str, precision: str, batch: int) -> tuple[float, str, float, float]:
        """Returns (seconds, what bounds it, FLOP, bytes): per step for tokens, per call for the other stages."""
        cfg, half = self.config, self._compute_dtype(precision)
        seconds = self.rendered / workload.TOKEN_RATE
        if stage == "tokens":
            context = cfg.t3.prefix_len + self._text_ids() + self.drawn // 2
            flops, size = ceilings.t3_step(cfg.t3, precision, context, batch, half)
        else:
            prompt = round(min(self.args.prompt, PROMPT_SECONDS) * workload.TOKEN_RATE)
            steps = cfg.flow.default_steps
            flops = {
                "mel": lambda: ceilings.flow(cfg.flow, self.rendered, prompt, steps, batch),
                "wav": lambda: ceilings.hift(cfg.hift, 2 * self.rendered, batch),
                "voice": lambda: ceilings.voice(cfg, self.args.prompt),
                "watermark": lambda: batch * ceilings.watermark(seconds),
            }[stage]()
            size = 0.0
        floor, by = self.machine.seconds(flops, size, precision if stage == "tokens" else half)
        return floor, by, flops, size

    def _compute_dtype(self, precision: str) -> str:
        """Returns the type of activations, cache and S3Gen: int8 and int4 change T3's linear layers only, and so does
        float16 on a CPU that packs it."""
        import torch

        from chatterbox_opt.engine.resolve import resolve, stored_dtype
        from chatterbox_opt.options import EngineOptions

        device = torch.device(self.device)
        options = resolve(EngineOptions(dtype=self._option_dtype(precision)), device)
        return str(stored_dtype(options, device)).removeprefix("torch.")

    def _option_dtype(self, precision: str) -> str:
        return "auto" if precision.startswith("int") else precision

    def _text_ids(self) -> int:
        return len(TEXT) // (4 if self.config.t3.is_gpt else 1) // (2 if self.args.model == "tts" else 1)

    # ---- figures ---------------------------------------------------------------------------------

    def run(self, precision: str) -> None:
        wanted = [stage for stage in self.args.stage if self._runs_in(stage, precision)]
        if not wanted:
            return
        try:
            model = self._load(precision)
        except (ValueError, RuntimeError) as error:
            self.skipped.append(f"{precision}: {str(error)[:200]}")
            workload.say(self.skipped[-1])
            return
        voice = model.prepare_voice(self.voice_path)
        for stage in wanted:
            for batch in self._batches_of(stage):
                label = f"{stage}, {precision}, batch {batch}"
                if time.perf_counter() > self.args.until:
                    self.skipped.append(f"{label}: over the budget of {self.args.budget:g} minutes")
                    continue
                try:
                    getattr(self, f"_{stage}")(
                        model, voice, precision if stage not in ("voice", "watermark") else "float32", batch
                    )
                except (ValueError, RuntimeError) as error:  # out of memory, or a kernel that this device lacks
                    self.skipped.append(f"{label}: {str(error)[:200]}")
                    workload.say(self.skipped[-1])
                    meters.free(self.device)
        if "tokens" in wanted:
            self._compare_logits(model, voice, precision)
        del model, voice
        meters.free(self.device)

    def _runs_in(self, stage: str, precision: str) -> bool:
        if precision in self._precisions_of(stage):
            return stage == "tokens" or not any((r["stage"], r["precision"]) == (stage, precision) for r in self.rows)
        return stage in ("voice", "watermark") and precision == self.args.precision[0]

    def _load(self, precision: str) -> Any:
        from chatterbox_opt.options import EngineOptions

        options = EngineOptions(
            dtype=self._option_dtype(precision),
            s3gen_dtype=self._compute_dtype(precision),
            quantize=precision if precision.startswith("int") else None,
            runaway_guard=False,
            slots=max(self.args.batch),
        )
        seconds, model = meters.timed(lambda: workload.load(self.source, self.device, options), self.device)
        workload.say(f"{precision}: loaded in {seconds:.1f} s")
        meters.reset_peak(self.device)
        return model

    def _add(
        self, stage: str, precision: str, batch: int, first: float, runs: list[float], audio: float, **more: Any
    ) -> None:
        """`runs` are in the unit of the ceiling."""
        floor = self.floor(stage, precision, batch)[0]
        steady = report.spread(runs)
        self.rows.append(
            {
                "stage": stage,
                "precision": precision,
                "batch": batch,
                "first_seconds": first,
                "steady": steady,
                "floor": floor,
                "reached": floor / steady["median"],
                "times_real_time": batch * audio / steady["median"],
                **more,
                **meters.memory(self.device),
            }
        )
        r = self.rows[-1]
        workload.say(
            f"{stage}, {precision}, batch {batch}: first call {first:.3f} s, steady {1000 * steady['median']:.2f} ms, "
            f"{100 * r['reached']:.0f} % of the ceiling, {r['times_real_time']:.2f} times real time"
        )

    def _tokens(self, model: Any, voice: Any, precision: str, batch: int) -> None:
        """Separates prefill from decoding by two lengths: one token, and many."""

        def draw(n: int) -> Callable[[], Any]:
            return lambda: self._drawn(model, voice, batch, n)

        n = self.drawn
        first = meters.timed(draw(n), self.device)[0]
        prefill = statistics.median(meters.repeated(draw(1), self.device, self.args.repeats + 1)[1:])
        whole = meters.repeated(draw(n), self.device, self.args.repeats)
        steps = [max(1e-9, w - prefill) / (n - 1) for w in whole]
        size = self.floor("tokens", precision, batch)[3]
        self._add(
            "tokens",
            precision,
            batch,
            first,
            steps,
            1 / workload.TOKEN_RATE,
            prefill_seconds=prefill,
            tokens=n,
            gb_per_s=size / statistics.median(steps) / 1e9,
        )

    def _drawn(self, model: Any, voice: Any, batch: int, tokens: int) -> list[list[int]]:
        """Returns the tokens of that many utterances in one batch, without rendering them."""
        import torch

        from chatterbox_opt.engine.noise import RequestNoise
        from chatterbox_opt.engine.request import Call, Utterance

        (job, *_) = model.jobs(
            [TEXT], voices=voice, language_ids=self.language, max_new_tokens=tokens
        )
        ids, device = model.pipeline.text_ids(TEXT, job.language), torch.device(self.device)
        utterances = [
            Utterance(ids, job.voice.t3, job.sampling, noise=RequestNoise(device, i)) for i in range(batch)
        ]
        model.pipeline.engine.run(Call(utterances))
        return [u.tokens for u in utterances]

    def _mel(self, model: Any, voice: Any, precision: str, batch: int) -> None:
        from chatterbox_opt.engine.mel import MelJob

        tokens, noises = self._speech(batch)
        model.pipeline.mel.warmup(batch)

        def render() -> Any:
            return model.pipeline.mel.render([MelJob(t, voice.gen, n) for t, n in zip(tokens, noises())])

        self._measure("mel", precision, batch, render)

    def _wav(self, model: Any, voice: Any, precision: str, batch: int) -> None:
        import torch

        g = torch.Generator().manual_seed(workload.SEED)
        mels = [(torch.randn(80, 2 * self.rendered, generator=g) - 4).to(self.device) for _ in range(batch)]
        noises = self._speech(batch)[1]
        model.pipeline.wav.warmup(batch)
        self._measure("wav", precision, batch, lambda: model.pipeline.wav.render(mels, noises()))

    def _watermark(self, model: Any, voice: Any, precision: str, batch: int) -> None:
        import torch

        n = self.rendered * workload.SAMPLE_RATE // workload.TOKEN_RATE
        waves = [0.1 * torch.randn(n, device=self.device) for _ in range(batch)]
        self._measure("watermark", precision, batch, lambda: model.watermarker.apply(waves))

    def _voice(self, model: Any, voice: Any, precision: str, batch: int) -> None:
        """Each run takes another recording, as known voices are cached; a cached voice is timed separately."""
        files = [workload.voice_file(self.args.work_dir, self.args.prompt, i + 1) for i in range(self.args.repeats + 1)]
        runs = [meters.timed(lambda f=f: model.prepare_voice(f), self.device)[0] for f in files]
        cached = meters.timed(lambda: model.prepare_voice(files[-1]), self.device)[0]
        self._add("voice", precision, 1, runs[0], runs[1:], self.args.prompt, cached_seconds=cached)

    def _measure(self, stage: str, precision: str, batch: int, call: Callable[[], Any]) -> None:
        import torch

        with torch.inference_mode():
            first = meters.timed(call, self.device)[0]
            runs = meters.repeated(call, self.device, self.args.repeats)
        self._add(stage, precision, batch, first, runs, self.rendered / workload.TOKEN_RATE, tokens=self.rendered)

    def _speech(self, batch: int) -> tuple[list[Any], Callable[[], list[Any]]]:
        import torch

        from chatterbox_opt.engine.noise import RequestNoise

        g = torch.Generator().manual_seed(workload.SEED)
        tokens = [torch.randint(0, 6561, (self.rendered,), generator=g).to(self.device) for _ in range(batch)]
        return tokens, lambda: [RequestNoise(torch.device(self.device), i) for i in range(batch)]

    # ---- logits by precision ---------------------------------------------------------------------

    def _compare_logits(self, model: Any, voice: Any, precision: str) -> None:
        """Compares with float32 on the same history. float32 must be the first of the precisions."""
        import metrics
        import torch

        if self.reference is None:
            if precision != "float32":
                return
            history = torch.tensor(self._drawn(model, voice, 1, self.drawn)[0])
            self.reference = history, metrics.forced_logits(model, TEXT, voice, history, self.language)
            return
        history, reference = self.reference
        mine = metrics.forced_logits(model, TEXT, voice, history, self.language)
        self.logits.append({"precision": precision, **metrics.compare_logits(reference, mine)})
        r = self.logits[-1]
        workload.say(
            f"{precision}: logits off by {r['rms_error']:.3f} rms where they spread by {r['spread']:.2f}, "
            f"KL {r['kl']:.4f}, same likeliest token at {100 * r['argmax_agreement']:.1f} % of the steps"
        )


if __name__ == "__main__":
    sys.exit(main())
