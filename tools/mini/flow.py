"""Stage `flow`: codes and a voice to mels, by flow matching with the prompt masked in.

Beside the published model's loss, the encoder's output is drawn to the mel itself: what one velocity net of a million
weights need not find, it can refine.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chatterbox_opt.config import MEL_BINS, SPEECH_CODES, XVECTOR_DIM
from chatterbox_opt.models.flow import Flow
from chatterbox_opt.weights import keymap, layout

from . import codes, common
from .sizes import CONFIG, Published

CFG = CONFIG.flow
BLIND = 0.2  # share of rows that know nothing, for guidance
PROMPTED = 0.5  # share of rows whose beginning is given
LONGEST = 250  # frames of a training example
JOINED = 4  # utterances in one, in the share below of the batches: distances that no single one has
JOINS = 0.15
SIGMA = 1e-6


class Teach(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flow = Flow(CFG)

    def forward(self, embedding: Tensor, tokens: Tensor, lengths: Tensor, mel: Tensor, given: Tensor, blind: Tensor,
                xvector: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """mel (B, 2n, 80); `given` (B,) frames of it are the prompt; t (B,) -> mu and velocities."""
        flow = self.flow
        mu = flow.encoder_proj(flow.encoder(F.embedding(tokens, embedding), lengths))
        frames = torch.arange(mel.shape[1], device=mel.device)
        prompt = mel * (frames < given[:, None])[..., None]
        speaker = flow.speaker(xvector).expand(len(mel), -1)
        keep = (~blind).float()[:, None]
        known = (mu * keep[..., None], speaker * keep, prompt * keep[..., None])
        at = t[:, None, None]
        x = (1 - (1 - SIGMA) * at) * noise + at * mel
        estimator = flow.decoder.estimator
        mask = frames < 2 * lengths[:, None]
        # One time a row: resnets take (B, C) as they take (C,), with an axis for the frames.
        times = F.mish(estimator.time_mlp(t))
        table = [stage.resnet.mlp(times)[:, None] for stage in (estimator.down, *estimator.mid, estimator.up)]
        return mu, estimator(x, table, estimator.constant(*known), mask[:, None, None])


class Model(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        rules = keymap.under("flow", keymap.FLOW)
        shapes = {f"flow.{k}": v for k, v in layout.flow(CFG).items()}
        with torch.device("meta"):
            net = Teach()
        self.body = Published(net, shapes, rules, seed)
        noise = torch.Generator().manual_seed(seed + 1)
        self.shared = nn.Parameter(torch.randn(2, codes.PHONES, CFG.dim, generator=noise) * 0.5)

    def table(self) -> Tensor:
        every = torch.arange(SPEECH_CODES, device=self.shared.device)
        both = self.shared[0, every % codes.PHONES] + self.shared[1, every // codes.PHONES]
        return both + self.body.published()["flow.input_embedding.weight"]

    def forward(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        return self.body.run(self.table(), *batch)

    def export(self) -> dict[str, Tensor]:
        return self.body.published() | {"flow.input_embedding.weight": self.table()}


def xvector_of(device: str) -> Tensor:
    """The only voice's, (1, 192)."""
    return torch.randn(1, XVECTOR_DIM, generator=torch.Generator().manual_seed(11)).to(device)


def examples(work: Path, part: str) -> list[dict[str, Tensor]]:
    return [i for i in common.read(work, part, ("codes", "mel")) if len(i["codes"]) > 8]


def join(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {"codes": torch.cat([i["codes"] for i in items]), "mel": torch.cat([i["mel"] for i in items], 1)}


def collate(
    items: list[dict[str, Tensor]], device: str, rng: random.Random, longest: int
) -> tuple[Tensor, Tensor, Tensor]:
    tokens, mels = [], []
    for item in items:
        n = min(len(item["codes"]), longest // 2)
        a = rng.randrange(len(item["codes"]) - n + 1)
        tokens.append(item["codes"][a : a + n].long())
        mels.append(item["mel"][:, 2 * a : 2 * (a + n)].t().float())
    lengths = torch.tensor([len(t) for t in tokens])
    pad = nn.utils.rnn.pad_sequence
    return pad(tokens, batch_first=True).to(device), lengths.to(device), pad(mels, batch_first=True).to(device)


def losses(
    model: Model, items: list, device: str, rng: random.Random, longest: int = LONGEST
) -> dict[str, Tensor]:
    tokens, lengths, mel = collate(items, device, rng, longest)
    b = len(tokens)
    given = (torch.rand(b, device=device) * 0.5 * 2 * lengths * (torch.rand(b, device=device) < PROMPTED)).long()
    blind = torch.rand(b, device=device) < BLIND
    t = 1 - torch.cos(torch.rand(b, device=device) * 0.5 * torch.pi)  # as densely as sampling steps
    noise = torch.randn_like(mel)
    mu, velocity = model(tokens, lengths, mel, given, blind, xvector_of(device), t, noise)
    real = (torch.arange(mel.shape[1], device=device) < 2 * lengths[:, None])[..., None]
    count = real.sum() * MEL_BINS
    flow = ((velocity - (mel - (1 - SIGMA) * noise)).square() * real).sum() / count
    prior = ((mu - mel).abs() * real).sum() / count
    return {"loss": flow + prior, "flow": flow, "prior": prior}


def main(argv: list[str]) -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--rate", type=float, default=1e-3)
    args = parser.parse_args(argv)
    clock = common.setup(args)
    model = Model(args.seed).to(args.device)
    trainer = common.Trainer("flow", args, model, args.rate, args.steps)
    rng = random.Random(args.seed + trainer.step)
    train(args, clock, trainer, model, rng)
    trainer.save(clock.spent)


def train(
    args: argparse.Namespace, clock: common.Clock, trainer: common.Trainer, model: Model, rng: random.Random
) -> None:
    items, held = examples(args.work, "train"), examples(args.work, "test")[:24]
    items.sort(key=lambda i: len(i["codes"]))
    notes = []
    for group in common.batches(items, args.batch, rng):
        if trainer.done or not clock.tick():
            return
        longest = LONGEST
        if rng.random() < JOINS and len(items) >= JOINED:
            group = [join(rng.sample(items, JOINED)) for _ in range(max(1, args.batch // JOINED))]
            longest *= JOINED
        found = losses(model, group, args.device, rng, longest)
        trainer.update(found["loss"])
        notes.append({k: v.item() for k, v in found.items()})
        if trainer.step % 100 == 0:
            with torch.no_grad():
                got = losses(model, held, args.device, random.Random(0))
            mean = {k: common.average([n[k] for n in notes]) for k in notes[0]}
            notes.clear()
            common.log("flow", args, step=trainer.step, seconds=clock.spent, sentences=len(items), **mean,
                       **{f"held_{k}": v.item() for k, v in got.items()})
            trainer.save(clock.spent)
