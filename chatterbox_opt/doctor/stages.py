"""Measures the time of each stage and compares it with its lower bound on this device."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from ..config import S3GEN_RATE, SAMPLES_PER_TOKEN, SPEECH_CODES, TOKEN_RATE
from ..engine.mel import MelJob
from ..engine.noise import RequestNoise
from . import ceilings, clock
from .findings import OK, SLOWER, Finding
from .patient import LONG, Patient

TOKENS = 100  # 4 s of speech
ROUNDS = 3


def stages(patient: Patient) -> Iterator[Finding]:
    machine = ceilings.measure(str(patient.device), patient.quick and patient.device.type == "cpu")
    rates = ", ".join(f"{kind} {rate / 1e3:.2f}" for kind, rate in machine.gflops.items())
    figures = {"read_gb": machine.read_gb, "gflops": machine.gflops}
    yield Finding("this device", OK, f"reads {machine.read_gb:.0f} GB/s; TFLOP/s: {rates}", figures=figures)
    for name in patient.names:
        yield from Stages(patient, name, machine).measured()


class Stages:
    """Every method but the last returns (seconds, FLOP, bytes, precision of the computation, description)."""

    def __init__(self, patient: Patient, name: str, machine: ceilings.Machine) -> None:
        self.patient, self.name, self.machine, self.device = patient, name, machine, patient.device
        self.model = patient.model(name)
        self.config, self.options, self.pipeline = self.model.config, self.model.options, self.model.pipeline
        self.language = patient.language(self.model, "language_id")
        self.steps = self.options.flow_steps or self.config.flow.default_steps

    def measured(self) -> Iterator[Finding]:
        self.patient.speak(self.model, (LONG,), TOKENS)  # captures at first use
        spent = 0.0  # seconds for those of TOKENS
        for method, times in ((self.token, TOKENS), (self.euler, self.steps), (self.vocoder, 1), (self.watermark, 1)):
            seconds, flops, size, dtype, what = method()
            floor, bound = self.machine.seconds(flops, size, dtype)
            spent += times * seconds
            least = f"{seconds / floor:.1f} times the {1e3 * floor:.3f} ms of {bound} alone"
            text = f"{1e3 * seconds:.2f} ms, {least} ({what})"
            figures = dict(seconds=seconds, floor=floor, bound=bound)
            yield Finding(f"{method.__name__}: {self.name}", OK, text, figures=figures)
        yield self.first_sound()
        speech = TOKENS / TOKEN_RATE
        text = f"{spent:.2f} s of work for {speech:.0f} s of speech, RTF {spent / speech:.3f}"
        hint = "" if spent < speech else 'quantize="int8", preset="fast", or a smaller model (nano)'
        yield Finding(f"speech: {self.name}", OK if spent < speech else SLOWER, text, hint, dict(rtf=spent / speech))

    def token(self) -> tuple[float, float, float, str, str]:
        """Measures a token as the difference between a long run and a short one."""
        (few, short), (many, long) = (
            min((self._drawn(most) for _ in range(ROUNDS)), key=lambda run: run[1]) for most in (10, 10 + TOKENS)
        )
        t3, kind = self.config.t3, self.options.quantize or self.options.dtype
        ids = self.pipeline.text_ids(LONG, *self.language.values())
        flops, size = ceilings.t3_step(t3, kind, t3.prefix_len + len(ids) + many // 2, 1, self.options.dtype)
        return (long - short) / max(1, many - few), flops, size, kind, f"T3, a token, {kind}, {many} drawn"

    def _drawn(self, most: int) -> tuple[int, float]:
        start = time.perf_counter()
        count = len(self.model.generate_tokens(LONG, seed=3, max_new_tokens=most, **self.language))
        return count, time.perf_counter() - start

    @torch.inference_mode()
    def euler(self) -> tuple[float, float, float, str, str]:
        mel, best, tokens = self.pipeline.mel, float("inf"), torch.arange(TOKENS) * 7919 % SPEECH_CODES
        with self.pipeline.engine.idle():
            for _ in range(ROUNDS):
                job = MelJob(tokens, self.model.conds.gen, RequestNoise(self.pipeline.device, 1))
                solve = mel.begin([mel.row(job)])
                runs = clock.repeated(lambda s=solve: mel.advance(s), self.device, solve.steps)
                best = min(best, sum(runs) / len(runs))
        flops = (1 if self.config.flow.meanflow else 2) * ceilings.estimator(self.config.flow, solve.size)
        return best, flops, 0.0, self.options.s3gen_dtype, f"a step of the flow over {solve.size} frames"

    @torch.inference_mode()
    def vocoder(self) -> tuple[float, float, float, str, str]:
        wav = self.pipeline.wav
        mel = torch.linspace(-8, 0, 2 * TOKENS, device=self.pipeline.device).expand(80, -1)
        with self.pipeline.engine.idle():
            seconds = clock.quickest(
                lambda: wav.render([mel], [RequestNoise(self.pipeline.device, 1)]), self.device, ROUNDS
            )
        flops = ceilings.hift(self.config.hift, mel.shape[1])
        return seconds, flops, 0.0, self.options.s3gen_dtype, f"the vocoder over {mel.shape[1]} frames"

    def watermark(self) -> tuple[float, float, float, str, str]:
        wave = torch.linspace(0, 4000, TOKENS * SAMPLES_PER_TOKEN).sin().mul(0.1).to(self.pipeline.device)
        seconds = clock.quickest(lambda: self.model.watermarker.apply([wave]), self.device, ROUNDS)
        speech = len(wave) / S3GEN_RATE
        return seconds, ceilings.watermark(speech), 0.0, "float32", f"the watermark of {speech:.0f} s"

    def first_sound(self) -> Finding:
        runs = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            stream = self.model.generate_stream(LONG, seed=3, max_new_tokens=TOKENS, **self.language)
            next(stream)
            runs.append(time.perf_counter() - start)
            stream.close()
        text = f"{1e3 * min(runs):.0f} ms from the call to the first chunk of a stream"
        return Finding(f"first sound: {self.name}", OK, text, figures=dict(seconds=min(runs)))
