"""Stage `flow`: codes and a voice to mels, by flow matching with the prompt masked in.

Beside the published model's loss, the encoder's output is trained towards the mel itself, and the flow's target lies
most of the way towards that output: a velocity net of a million weights turns the rest into noise that hides words.
"""

from __future__ import annotations

import argparse
import math
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
BLIND = 0.2  # fraction of rows without conditions, for guidance
PROMPTED = 0.5  # fraction of rows whose beginning is given
LONGEST = 250  # frames of a training example
JOINED = 4  # utterances in one, in the share below of the batches: distances that no single one has
JOINS = 0.15
SIGMA = 1e-6
PULL = 0.7  # of the way from the mel to the encoder's output
MEL_MEAN = -4.0
GAIN = 1.5  # between the 1 that is right at the start and what the last steps need
LEVEL = 150.0  # of the two constant channels
LINEAR = 5.0  # where Mish is a straight line


class TrainingPass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flow = Flow(CFG)

    def forward(self, embedding: Tensor, tokens: Tensor, lengths: Tensor, mel: Tensor, given: Tensor, blind: Tensor,
                xvector: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """mel (B, 2n, 80); `given` (B,) frames of it are the prompt; t (B,) -> mu, velocities, and the right ones."""
        flow = self.flow
        mu = flow.encoder_proj(flow.encoder(F.embedding(tokens, embedding), lengths))
        frames = torch.arange(mel.shape[1], device=mel.device)
        prompt = mel * (frames < given[:, None])[..., None]
        speaker = flow.speaker(xvector).expand(len(mel), -1)
        keep = (~blind).float()[:, None]
        known = (mu * keep[..., None], speaker * keep, prompt * keep[..., None])
        at = t[:, None, None]
        goal = torch.lerp(mel, mu.detach(), PULL)
        x = (1 - (1 - SIGMA) * at) * noise + at * goal
        estimator = flow.decoder.estimator
        mask = frames < 2 * lengths[:, None]
        # One time a row: resnets take (B, C) as they take (C,), with an axis for the frames.
        times = F.mish(estimator.time_mlp(t))
        table = [stage.resnet.mlp(times)[:, None] for stage in (estimator.down, *estimator.mid, estimator.up)]
        velocity = estimator(x, table, estimator.constant(*known), mask[:, None, None])
        return mu, velocity, goal - (1 - SIGMA) * noise


@torch.no_grad()
def begin_as_denoiser(state: dict[str, Tensor]) -> None:
    """Initializes the estimator as velocity = GAIN (mu - x), which is right for any goal near mu. A network this narrow
    does not learn it by itself: its norms and activations lie between the noise and the output, so that it predicts the
    mel and leaves the noise in. The difference uses the first 80 channels of the outer shortcut; two constant channels
    keep the last norm from rescaling frames by their loudness."""
    net = {k.removeprefix("flow.decoder.estimator."): v for k, v in state.items() if ".estimator." in k}
    for name, value in net.items():  # what goes on beside the shortcut begins quietly
        if name.endswith(("block2.block.2.weight", "attn1.to_out.0.weight", "ff.net.2.weight")):
            value.mul_(0.1)
    mels = torch.arange(MEL_BINS)
    first, last = net["down_blocks.0.0.res_conv.weight"], net["up_blocks.0.0.res_conv.weight"]
    first[:MEL_BINS] = 0
    first[mels, mels], first[mels, MEL_BINS + mels] = -1, 1  # x, mu
    net["down_blocks.0.0.res_conv.bias"][:MEL_BINS] = -MEL_MEAN  # the middle of speech is at zero
    last *= 0.1
    last[:, CFG.channels :] = torch.eye(CFG.channels)[..., None]  # the skip
    for name in ("up_blocks.0.2", "final_block.block.0"):
        net[f"{name}.weight"].mul_(0.1)
        net[f"{name}.weight"][:MEL_BINS] = 0
        net[f"{name}.weight"][mels, mels, 2] = 1  # the newest of its three frames
    high, low = CFG.channels - 1, CFG.channels - 2
    net["final_block.block.0.weight"][[high, low]] = 0
    net["final_block.block.0.bias"][high], net["final_block.block.0.bias"][low] = LEVEL, -LEVEL
    spread, gain = LEVEL * math.sqrt(2 / CFG.channels), 8.0
    net["final_block.block.2.weight"][:] = gain
    bias = net["final_block.block.2.bias"]
    bias[:] = LINEAR  # where every channel lies, the constant ones too: bf16 rounds what is far from zero
    bias[high] -= gain * LEVEL / spread
    bias[low] += gain * LEVEL / spread
    out = net["final_proj.weight"]
    out.zero_()
    out[mels, mels, 0] = GAIN * spread / gain
    out[:, [high, low], 0] = -0.5 * GAIN * spread / gain  # together they tell the mean that the norm took away
    net["final_proj.bias"][:] = GAIN * MEL_MEAN  # Mish(LINEAR) of the first and of the other two cancel


class Model(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        rules = keymap.under("flow", keymap.FLOW)
        shapes = {f"flow.{k}": v for k, v in layout.flow(CFG).items()}
        with torch.device("meta"):
            net = TrainingPass()
        self.body = Published(net, shapes, rules, seed)
        begin_as_denoiser(self.body.published())
        noise = torch.Generator().manual_seed(seed + 1)
        self.shared = nn.Parameter(torch.randn(2, codes.PHONES, CFG.dim, generator=noise) * 0.5)

    def table(self) -> Tensor:
        every = torch.arange(SPEECH_CODES, device=self.shared.device)
        both = self.shared[0, every % codes.PHONES] + self.shared[1, every // codes.PHONES]
        return both + self.body.published()["flow.input_embedding.weight"]

    def forward(self, *batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.body.run(self.table(), *batch)

    def export(self) -> dict[str, Tensor]:
        return self.body.published() | {"flow.input_embedding.weight": self.table()}


def encoder_of(work: Path) -> Flow | None:
    """Returns the package's network as trained so far, for its encoder; None before the first checkpoint."""
    file = work / "flow.pt"
    if not file.exists():
        return None
    model, net = Model(0), Flow(CFG)
    model.load_state_dict(torch.load(file, weights_only=True, map_location="cpu")["net"])
    with torch.no_grad():
        own = {k.removeprefix("flow."): v.detach().clone() for k, v in model.export().items()}
    net.load_state_dict(keymap.remap(own, keymap.FLOW))
    return net.eval()


def xvector_of(device: str) -> Tensor:
    """Returns the x-vector of the only voice, (1, 192)."""
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
    mu, velocity, wanted = model(tokens, lengths, mel, given, blind, xvector_of(device), t, noise)
    real = (torch.arange(mel.shape[1], device=device) < 2 * lengths[:, None])[..., None]
    count = real.sum() * MEL_BINS
    flow = ((velocity - wanted).square() * real).sum() / count
    prior = ((mu - mel).abs() * real).sum() / count
    return {"loss": flow + prior, "flow": flow, "prior": prior}


def main(argv: list[str]) -> None:
    args = common.training_arguments(__doc__, steps=10_000, batch=12, rate=1e-3).parse_args(argv)
    clock = common.setup(args)
    model = Model(args.seed).to(args.device)
    trainer = common.Trainer("flow", args, model, clock)
    train(args, trainer, model, random.Random(args.seed + trainer.step))
    trainer.save()


def train(args: argparse.Namespace, trainer: common.Trainer, model: Model, rng: random.Random) -> None:
    items, held = examples(args.work, "train"), examples(args.work, "test")[:24]
    items.sort(key=lambda i: len(i["codes"]))

    def of_batch(group: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        longest = LONGEST
        if rng.random() < JOINS and len(items) >= JOINED:
            group = [join(rng.sample(items, JOINED)) for _ in range(max(1, args.batch // JOINED))]
            longest *= JOINED
        return losses(model, group, args.device, rng, longest)

    trainer.run(
        common.batches(items, args.batch, rng), of_batch,
        lambda: losses(model, held, args.device, random.Random(0)), sentences=len(items),
    )
