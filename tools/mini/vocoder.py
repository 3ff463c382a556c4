"""Stage `vocoder`: mel to wav by spectral losses, with the fundamental from a pitch tracker.

The pitch is tracked once an utterance, by autocorrelation: the teacher's voice is clean enough for it. The F0 net
learns it as a regression; the rest trains on the tracked pitch, so that neither waits for the other. Mels are blended
with what the flow's encoder makes of their codes, as far as the flow itself goes that way.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chatterbox_opt.config import S3GEN_RATE, SAMPLES_PER_FRAME
from chatterbox_opt.models import hift
from chatterbox_opt.models.hift import MAX_MAGNITUDE, Hift
from chatterbox_opt.models.layers import overlap_add
from chatterbox_opt.models.mel import slaney_filters
from chatterbox_opt.weights import keymap, layout

from . import common
from .flow import PULL, encoder_of
from .sizes import CONFIG, Published, set_magnitudes

CFG = CONFIG.hift
SEGMENT = 24  # frames of a training example, 0.48 s
LOW, HIGH = 60.0, 320.0  # Hz, where a man's voice is looked for
VOICED = 0.45  # normalised autocorrelation above which a frame is voiced
HEADROOM = 0.7  # the teacher speaks at full scale, and what is predicted overshoots, in bf16 by half as much again
SCALES = ((2048, 512), (1024, 256), (512, 128), (256, 64))  # window, hop


def pitch(wav: Tensor, frames: int) -> Tensor:
    """Returns (frames,) Hz of (N,) at 24 kHz, 0 where unvoiced."""
    size = 1920
    low = F.avg_pool1d(wav[None, None], 4, 4)[0, 0]  # 6 kHz are plenty, and average out what is above
    rate, size, hop = S3GEN_RATE / 4, size // 4, SAMPLES_PER_FRAME // 4
    padded = F.pad(low, ((size - hop) // 2, size))
    framed = padded.unfold(0, size, hop)[:frames]
    framed = framed - framed.mean(1, keepdim=True)
    spectrum = torch.fft.rfft(framed * torch.hann_window(size), n=2 * size)
    auto = torch.fft.irfft(spectrum.abs().square())[:, :size]
    window = torch.fft.irfft(torch.fft.rfft(torch.hann_window(size), n=2 * size).abs().square())[:size]
    auto = auto / window.clamp(min=1e-3 * window[0].item()) * window[0]
    first, last = int(rate / HIGH), int(rate / LOW)
    best, at = (auto[:, first:last] / auto[:, :1].clamp(min=1e-8)).max(1)
    at = at + first
    before, here, after = (auto.gather(1, (at + i)[:, None])[:, 0] for i in (-1, 0, 1))
    bend = (before - 2 * here + after).clamp(max=-1e-9)
    fine = at + 0.5 * (before - after) / bend.where(bend.abs() > 1e-8, -1.0)
    loud = framed.square().mean(1) > 1e-5
    return torch.where((best > VOICED) & loud, rate / fine.clamp(first, last), 0.0)


class Trainable(Hift):
    """The same arithmetic without in-place operations, for gradients."""

    def _wave(self, x: Tensor) -> Tensor:
        n_fft, hop = self.cfg.n_fft, self.cfg.hop
        magnitude, phase = x.split(n_fft // 2 + 1, -1)
        magnitude, phase = magnitude.exp().clamp(max=MAX_MAGNITUDE), phase.sin()
        frames = torch.cat([magnitude * phase.cos(), magnitude * phase.sin()], -1) @ hift.synthesis(n_fft, x.device)
        half, length = n_fft // 2, hop * (x.shape[1] - 1)
        wave = overlap_add(frames, hop)[:, half : half + length]
        square = (hift.window(n_fft) ** 2).float().expand(1, x.shape[1], -1)
        return wave / overlap_add(square, hop)[:, half : half + length].to(wave)


class TrainingPass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mel2wav = Trainable(CFG)

    def forward(self, mel: Tensor, f0: Tensor, phases: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (B, 480 T) and the F0 net's prediction (B, T)."""
        net = self.mel2wav
        return net.decode(mel, net.spectrum(net.m_source(f0, phases, noise)), OPERATIONS), net.f0_predictor(mel)


def snake(x: Tensor, scale: Tensor | None = None) -> Tensor:
    u = x if scale is None else x * scale[:, None, None]
    return u + torch.sin(u).square()


OPERATIONS = hift.VocoderOperations(snake=snake)


class Model(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        shapes = {f"mel2wav.{k}": v for k, v in layout.hift(CFG).items()}
        with torch.device("meta"):
            net = TrainingPass()
        self.body = Published(net, shapes, keymap.under("mel2wav", keymap.HIFT), seed)
        set_magnitudes(self.body)
        with torch.no_grad():
            state = self.body.published()
            state["mel2wav.conv_post.parametrizations.weight.original0"].mul_(0.1)
            state["mel2wav.conv_post.bias"][: CFG.n_fft // 2 + 1] = -3.0  # quiet at first
            state["mel2wav.f0_predictor.classifier.bias"].fill_(80.0)

    def forward(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        return self.body.run(*batch)

    def export(self) -> dict[str, Tensor]:
        return self.body.published()


# ---- loss ----------------------------------------------------------------------------------------


def mel_of(wav: Tensor) -> Tensor:
    """Returns (B, 80, n) of (B, N), up to 12 kHz: finer and wider than the vocoder's input."""
    bank = torch.from_numpy(slaney_filters(S3GEN_RATE, 1024, 80, S3GEN_RATE / 2)).to(wav.device)
    return (bank @ magnitude(wav, 1024, 256)).clamp(min=1e-5).log()


def magnitude(wav: Tensor, size: int, hop: int) -> Tensor:
    window = torch.hann_window(size, device=wav.device)
    spectrum = torch.stft(wav, size, hop, window=window, return_complex=True)
    return torch.view_as_real(spectrum).square().sum(-1).clamp(min=1e-9).sqrt()


def losses(model: Model, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
    mel, wav, f0 = batch
    h = CFG.harmonics + 1
    phases = (torch.rand(len(mel), h, 1, device=mel.device) * 2 - 1) * math.pi
    noise = torch.randn(len(mel), h, wav.shape[1], device=mel.device)
    made, heard = model(mel, f0, phases, noise)
    stft = made.new_zeros(())
    for size, hop in SCALES:
        a, b = magnitude(made, size, hop), magnitude(wav, size, hop)
        stft = stft + ((a.log() - b.log()).abs().mean() + (a - b).norm() / b.norm().clamp(min=1e-3)) / len(SCALES)
    mels = (mel_of(made) - mel_of(wav)).abs().mean()
    tone = (heard - f0).abs().mean()
    return {"loss": stft + 2 * mels + 0.01 * tone, "stft": stft, "mel": mels, "f0": tone}


# ---- stage ---------------------------------------------------------------------------------------


@torch.no_grad()
def examples(work: Path, part: str, limit: int) -> list[dict[str, Any]]:
    items = common.read(work, part, ("wav", "mel", "codes"), limit)
    items = [i for i in items if i["mel"].shape[1] > SEGMENT]
    flow = encoder_of(work)
    for item in items:
        item["wav"] = item["wav"].float() / 32767 * HEADROOM
        item["f0"] = pitch(item["wav"], item["mel"].shape[1])
        item["mel"] = item["mel"].float()
        item["mean"] = flow.encode(item["codes"].long()[None])[0].t() if flow else item["mel"]
    return items


def collate(items: list[dict[str, Any]], device: str, rng: random.Random) -> tuple[Tensor, Tensor, Tensor]:
    parts = []
    for item in items:
        a = rng.randrange(item["mel"].shape[1] - SEGMENT + 1)
        b = a + SEGMENT
        mel = torch.lerp(item["mel"][:, a:b], item["mean"][:, a:b], PULL * rng.random())
        parts.append((mel, item["wav"][a * SAMPLES_PER_FRAME : b * SAMPLES_PER_FRAME],
                      item["f0"][a:b]))
    mel, wav, f0 = (torch.stack(p).to(device) for p in zip(*parts))
    return mel, wav, f0


def main(argv: list[str]) -> None:
    parser = common.training_arguments(__doc__, steps=8_000, batch=8, rate=1e-3)
    parser.add_argument("--sentences", type=int, default=2000)
    args = parser.parse_args(argv)
    clock = common.setup(args)
    model = Model(args.seed).to(args.device)
    trainer = common.Trainer("vocoder", args, model, clock)
    train(args, trainer, model, random.Random(args.seed + trainer.step))
    trainer.save()


def train(args: argparse.Namespace, trainer: common.Trainer, model: Model, rng: random.Random) -> None:
    items = examples(args.work, "train", args.sentences)
    held = collate(examples(args.work, "test", 16), args.device, random.Random(0))

    def of_batch(group: list[dict[str, Any]]) -> dict[str, Tensor]:
        rng.shuffle(items)  # length does not matter here
        return losses(model, collate(group, args.device, rng))

    trainer.run(common.batches(items, args.batch, rng), of_batch, lambda: losses(model, held), sentences=len(items))
