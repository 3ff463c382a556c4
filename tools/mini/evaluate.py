"""Stage `eval`: word error rate of each stage on held-out sentences, by Whisper tiny.en.

teacher: its recording. griffin: its mel through Griffin-Lim. vocoder: its mel through the vocoder. flow: its codes
through the flow and Griffin-Lim. t3: codes from text through the flow and Griffin-Lim. whole: what a user hears.
two: that, with the two-step decoder. If all of them are run, the model card is written as well.
"""

from __future__ import annotations

import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chatterbox_opt.audio.io import write_wav
from chatterbox_opt.models.mel import slaney_filters
from chatterbox_opt.tts import OptimizedChatterboxTTS

from . import card, codes, common
from .book import Book
from .export import conditionals

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # scripts, not a package
from metrics import Listener, edits, word_error_rate

WHOLE_MODELS = ("whole", "two")
MODES = ("teacher", "griffin", "vocoder", "flow", "t3", *WHOLE_MODELS)
ROUNDS = 40  # of Griffin-Lim


def griffin_lim(mel: Tensor) -> Tensor:
    """Returns (480 T,) of (80, T): magnitudes by least squares, phases by iteration."""
    bank = torch.from_numpy(slaney_filters(24_000, 1920, 80, 8000.0))
    target = (torch.linalg.pinv(bank) @ mel.float().exp()).clamp(min=1e-5)
    window = torch.hann_window(1920)
    phase = torch.rand(target.shape, generator=torch.Generator().manual_seed(0)) * 2 * torch.pi
    spectrum = torch.polar(target, phase)
    for _ in range(ROUNDS):
        wav = torch.istft(spectrum, 1920, 480, window=window, length=480 * mel.shape[1])
        again = torch.stft(wav, 1920, 480, window=window, return_complex=True)[:, : target.shape[1]]
        spectrum = torch.polar(target, again.angle())
    return torch.istft(spectrum, 1920, 480, window=window, length=480 * mel.shape[1])


def load_exact(folder: Path, **how: Any) -> OptimizedChatterboxTTS:
    return OptimizedChatterboxTTS.from_local(
        folder, "cpu", enable_compilation=False, use_mixed_precision=False, enable_watermark=False, **how
    )


class Speaker:
    """The exported asset, stage by stage."""

    def __init__(self, folder: Path, work: Path, steps: int) -> None:
        self.folder, self.model = folder, load_exact(folder)
        self.gen, self.steps, self.book = conditionals(work)["gen"], steps, Book.at(work)
        self.ended: list[bool] = []  # limited to twice the teacher's time: one entry per call of a mode

    @cached_property
    def two(self) -> OptimizedChatterboxTTS:
        return load_exact(self.folder, decoder="meanflow")

    def tokens(self, text: str, seed: int) -> Tensor:
        (job,) = self.model.jobs([text], seeds=[seed])
        return self.model.pipeline.generate_tokens(job)

    def mel(self, spoken: Tensor) -> Tensor:
        """(n,) codes -> (80, 2n)."""
        from chatterbox_opt.models.flow import time_span

        net, prompt = self.model.s3gen.flow, self.gen["prompt_token"]
        given = self.gen["prompt_feat"]
        with torch.inference_mode():
            mu = net.encode(torch.cat([prompt, spoken[None].long()], 1))
            known = torch.zeros_like(mu)
            known[:, : given.shape[1]] = given
            noise = torch.randn(mu.shape, generator=torch.Generator().manual_seed(0))
            span = time_span(self.steps, False)
            times = net.decoder.estimator.time_table(span)
            conditions, x = net.conditions(mu, net.speaker(self.gen["embedding"]), known), noise
            for time, dt in zip(times, span.diff()):
                x = net.euler(x, time, dt, conditions)
        return x[0, given.shape[1] :].t()

    def wav(self, mel: Tensor) -> Tensor:
        net = self.model.s3gen.mel2wav
        noise = torch.Generator().manual_seed(0)
        h = net.cfg.harmonics + 1
        with torch.inference_mode():
            phases = (torch.rand(1, h, 1, generator=noise) * 2 - 1) * torch.pi
            return net(mel[None].float(), phases, torch.randn(1, h, 480 * mel.shape[1], generator=noise))[0]


def phone_error_rate(items: list[dict[str, Any]], speaker: Speaker, seed: int) -> float:
    """Returns the phone error rate of T3 alone against the teacher's phones, without a listener."""
    said = [codes.sounds(item["codes"]) for item in items]
    tokens = [speaker.tokens(item["text"], seed + i).long() for i, item in enumerate(items)]
    got = [codes.sounds(speaker.book.pair[t]) for t in tokens]
    return sum(edits(a, b) for a, b in zip(said, got)) / sum(map(len, said))


def wave_of(mode: str, item: dict[str, Any], speaker: Speaker | None, seed: int) -> Tensor:
    if mode == "teacher":
        return item["wav"].float() / 32767
    if mode == "griffin":
        return griffin_lim(item["mel"])
    if mode == "vocoder":
        return speaker.wav(item["mel"])
    if mode == "flow":
        pairs = item["codes"].long()
        return griffin_lim(speaker.mel(speaker.book.write(pairs, torch.zeros_like(pairs))))
    if mode == "t3":
        return griffin_lim(speaker.mel(speaker.tokens(item["text"], seed)))
    model = speaker.two if mode == "two" else speaker.model
    (speech,) = model.speak(model.jobs([item["text"]], seeds=seed))
    in_time = speech.wav.shape[1] <= 2 * len(item["wav"])
    speaker.ended.append(speech.stops == ["eos"] and in_time)
    return speech.wav[0]


def main(argv: list[str]) -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--cfm-steps", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="by default `asset` in the work folder")
    parser.add_argument("--keep", type=Path, help="also write the sound there")
    args = parser.parse_args(argv)
    clock = common.setup(args)
    items = common.read(args.work, "test")[: args.count]
    listener = Listener()
    ours = set(args.modes) - {"teacher", "griffin"}
    folder = args.folder or args.work / "asset"
    speaker = Speaker(folder, args.work, args.cfm_steps) if ours else None
    for mode in args.modes:
        pairs = []
        for i, item in enumerate(items):
            clock.tick()
            wav = wave_of(mode, item, speaker, args.seed + i)
            pairs.append((item["text"], listener.hear(wav, 24_000)))
            print(f"{mode} | {pairs[-1][0]} | {pairs[-1][1]}", flush=True)
            if args.keep:
                args.keep.mkdir(parents=True, exist_ok=True)
                write_wav(args.keep / f"{mode}-{i:02d}.wav", wav, 24_000)
        more = {}
        if mode in WHOLE_MODELS:
            more["ended"] = common.average(speaker.ended)
            speaker.ended.clear()
        if mode == "t3":
            more["phones"] = phone_error_rate(items, speaker, args.seed)
        common.log("eval", args, mode=mode, sentences=len(items), wer=word_error_rate(pairs), **more)
    if set(MODES) <= set(args.modes):
        card.write(folder, args.work, args.seed)
