"""Stage `tokenizer`: 16 kHz log-mels to codes; each of the eight numbers is trained towards the digit it is rounded to.

No other stage needs it: they train on the teacher's own codes. Reference recordings and voice conversion use it.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from torch import Tensor, nn

from chatterbox_opt.models.s3_tokenizer import TANH_SCALE, S3Tokenizer
from chatterbox_opt.weights import keymap, layout

from . import codes, common
from .sizes import CONFIG, Published

CFG = CONFIG.s3_tokenizer


class TrainingPass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = S3Tokenizer(CFG)

    def forward(self, mels: list[Tensor]) -> Tensor:
        """Returns (L, 8) before rounding, L the number of codes of all mels."""
        x, inner, outer, _ = self.tokenizer.encoder(mels)
        whole = x + (outer.weight @ inner).t()[: len(x)] + outer.bias
        return self.tokenizer.quantizer._codebook.project_down(whole).tanh() * TANH_SCALE


class Model(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        shapes = {f"tokenizer.{k}": v for k, v in layout.s3_tokenizer(CFG).items()}
        shapes = {k: v for k, v in shapes.items() if k not in layout.COMPUTED}
        with torch.device("meta"):
            net = TrainingPass()
        self.body = Published(net, shapes, keymap.under("tokenizer", keymap.S3_TOKENIZER), seed)

    def forward(self, mels: list[Tensor]) -> Tensor:
        return self.body.run(mels)

    def export(self) -> dict[str, Tensor]:
        return self.body.published()


def losses(model: Model, items: list[dict[str, Tensor]], device: str) -> dict[str, Tensor]:
    target = torch.cat([i["codes"].long() for i in items]).to(device)
    wanted = codes.digits(target)
    got = model([i["heard"].float().to(device) for i in items])
    loss = (got - wanted).square().mean()
    digits = got.detach().round().long() + 1
    ids = (digits * 3 ** torch.arange(8, device=device)).sum(-1)
    halves = (codes.unpack(ids) == codes.unpack(target)).float().mean()
    return {"loss": loss, "code": (ids == target).float().mean(), "phone": halves}


def main(argv: list[str]) -> None:
    args = common.training_arguments(__doc__, steps=10_000, batch=12, rate=1e-3).parse_args(argv)
    clock = common.setup(args)
    model = Model(args.seed).to(args.device)
    trainer = common.Trainer("tokenizer", args, model, clock)
    train(args, trainer, model, random.Random(args.seed + trainer.step))
    trainer.save()


def examples(work: Path, part: str) -> list[dict[str, Tensor]]:
    items = common.read(work, part, ("codes", "heard"))
    return sorted(items, key=lambda i: len(i["codes"]))


def train(args: argparse.Namespace, trainer: common.Trainer, model: Model, rng: random.Random) -> None:
    items, held = examples(args.work, "train"), examples(args.work, "test")[:16]
    trainer.run(
        common.batches(items, args.batch, rng), lambda group: losses(model, group, args.device),
        lambda: losses(model, held, args.device), sentences=len(items),
    )
