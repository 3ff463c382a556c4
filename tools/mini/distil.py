"""Stage `distil`: the exported flow's ten guided steps in two steps of a decoder without guidance.

The flow is a function from noise to mel, so only its states at the middle and at the end have to be learnt: the student
is the flow's own estimator, taught the mean velocities over [0, 0.5] and [0.5, 1], and then to reach the end from where
its own first step arrives. It needs only the exported folder, and computes on the CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from chatterbox_opt.config import FRAMES_PER_TOKEN, MEL_BINS
from chatterbox_opt.models.flow import Decoder, time_span
from chatterbox_opt.options import EngineOptions
from chatterbox_opt.tts import OptimizedChatterboxTTS
from chatterbox_opt.weights import keymap, layout
from chatterbox_opt.weights.files import FILES, MEANFLOW
from chatterbox_opt.weights.load import load_folder

from . import common
from .sentences import corpus
from .sizes import CONFIG, LIMIT, Published

CFG = dataclasses.replace(CONFIG.flow, meanflow=True)
ESTIMATOR, MIXER = (name.removeprefix("flow.") for name in (layout.ESTIMATOR, layout.MEANFLOW_KEY))
SHAPES = {k: v for k, v in layout.flow(CFG).items() if k.startswith(ESTIMATOR)}
SHARED = tuple(k for k in SHAPES if k.startswith(f"{ESTIMATOR}time_mlp."))  # as in the flow's own file
SPAN = time_span(CFG.default_steps, meanflow=True)  # 0, a half, 1
SHARD = 50  # sentences a file
CONTINUED = 0.5  # fraction of the sentences that are also continued from a position inside, as a stream is
SHORTEST = 4  # tokens before and after such a position
TOGETHER = 8  # sentences that T3 draws in one batch
YARDSTICKS = (2, 4, 6)  # steps of the flow itself
OWN = 2  # the second step begins where the first has ended: in no row at the start, in all from half of the steps on
HELD = 24  # examples that are compared


# ---- the teacher -----------------------------------------------------------------------------------


class Teacher:
    def __init__(self, folder: Path) -> None:
        self.model = OptimizedChatterboxTTS.from_local(
            folder, "cpu", engine=EngineOptions(dtype="float32", s3gen_dtype="float32"), enable_watermark=False
        )
        self.flow, self.gen = self.model.s3gen.flow, self.model.conds.gen
        self.speaker = self.flow.speaker(self.gen["embedding"])  # (1, 80)

    def spoken(self, texts: Sequence[str], first_seed: int) -> list[Tensor]:
        """Returns (n,) codes of each, drawn in one batch."""
        jobs = self.model.jobs(texts, seeds=[first_seed + i for i in range(len(texts))])
        with ThreadPoolExecutor(TOGETHER) as pool:
            return list(pool.map(self.model.pipeline.generate_tokens, jobs))

    @torch.inference_mode()
    def solve(self, item: dict[str, Tensor], steps: int) -> tuple[Tensor, Tensor]:
        """Returns the states (T, 80) at one half and at the end; one half lies on the straight line of a step."""
        batch, span = collate([item]), time_span(steps, meanflow=False)
        conditions = self.flow.conditions(batch["mu"], self.speaker, batch["prompt"])
        x = middle = batch["noise"]
        for time, a, b in zip(self.flow.decoder.estimator.time_table(span), span, span[1:]):
            before, x = x, self.flow.euler(x, time, b - a, conditions)
            if a <= SPAN[1] < b:
                middle = torch.lerp(before, x, (SPAN[1] - a) / (b - a))
        return middle[0], x[0]

    def example(self, tokens: Tensor, seed: int, said: tuple[Tensor, Tensor] | None = None) -> dict[str, Tensor]:
        """Returns conditions and results, (T, 80) each, and the prompt (P, 80). `said` is as in MelJob."""
        ids, prompt = self.gen["prompt_token"][0], self.gen["prompt_feat"][0]
        if said is not None:
            ids, prompt = torch.cat([ids, said[0]]), torch.cat([prompt, said[1].mT])
        with torch.inference_mode():
            mu = self.flow.encode(torch.cat([ids, tokens])[None])[0]
        noise = torch.randn(mu.shape, generator=torch.Generator().manual_seed(seed))
        item = {"mu": mu.half(), "prompt": prompt.half(), "noise": noise.half()}
        middle, end = self.solve(item, CONFIG.flow.default_steps)
        return {k: v.clone() for k, v in (item | {"middle": middle.half(), "end": end.half()}).items()}

    def examples(self, tokens: Tensor, seed: int, rng: random.Random) -> list[dict[str, Tensor]]:
        """Returns each sentence as a whole, and for some also a part between two positions, as a stream continues
        what was spoken before."""
        made = [self.example(tokens, seed)]
        if len(tokens) >= 3 * SHORTEST and rng.random() < CONTINUED:
            a = rng.randrange(SHORTEST, len(tokens) - SHORTEST)
            b = rng.randrange(a + SHORTEST, len(tokens) + 1)
            behind = len(made[0]["prompt"])
            said = tokens[:a], made[0]["end"][behind : behind + FRAMES_PER_TOKEN * a].float().mT
            made.append(self.example(tokens[a:b], seed + 1, said))
        return made


def prepare(args: argparse.Namespace, clock: common.Clock, teacher: Teacher) -> bool:
    """Makes missing shards; returns whether all are there."""
    train, held_out = corpus(args.seed)
    train = random.Random(args.seed).sample(train, min(args.sentences, len(train)))
    folder = args.work / "distil"
    folder.mkdir(exist_ok=True)
    parts = [("test", 0, held_out)]
    parts += [("train", i // SHARD, train[i : i + SHARD]) for i in range(0, len(train), SHARD)]
    for number, (part, index, texts) in enumerate(parts):
        file, rng = folder / f"{part}-{index:05d}.pt", random.Random(args.seed + number)
        if file.exists():
            continue
        made = []
        spoken = teacher.spoken(texts, first_seed=1000 * number)
        for i, tokens in enumerate(spoken):
            if not clock.tick():
                return False
            if len(tokens):
                made += teacher.examples(tokens, 1000 * number + 2 * i, rng)
        common.write(made, file)
        common.log("distil", args, shard=file.name, examples=len(made), seconds=clock.spent)
    return True


def read(work: Path, part: str) -> list[dict[str, Tensor]]:
    files = sorted((work / "distil").glob(f"{part}-*.pt"))
    return [item for file in files for item in torch.load(file, weights_only=True)]


# ---- the student -----------------------------------------------------------------------------------


class TwoSteps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = Decoder(CFG)

    def forward(self, batch: dict[str, Tensor], speaker: Tensor, own: Tensor) -> tuple[Tensor, ...]:
        """Velocities of both steps (B, T, 80), and where each began. The second begins where the first ended in the
        rows that `own` (B,) names, and where the flow is in the others."""
        estimator = self.decoder.estimator
        known = estimator.constant(batch["mu"], speaker.expand(len(own), -1), batch["prompt"])
        times, mask, half = estimator.time_table(SPAN), batch["real"][:, None, None], SPAN[1]
        first = estimator(batch["noise"], times[0], known, mask)
        middle = torch.where(own[:, None, None], batch["noise"] + half * first, batch["middle"])
        return first, middle, estimator(middle, times[1], known, mask)


class Model(nn.Module):
    """The flow's estimator with a mixer of times that passes on the first and ignores the second: of two steps, one
    says all about the other."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        with torch.device("meta"):
            net = TwoSteps()
        self.body = Published(net, SHAPES, keymap.FLOW, seed=0)
        given = load_file(folder / FILES["tts"]["s3gen"])
        with torch.no_grad():
            for name, value in self.body.published().items():
                value.copy_(torch.eye(*SHAPES[MIXER]) if name == MIXER else given[f"flow.{name}"])
                if name == MIXER or name in SHARED:
                    value.requires_grad_(False)

    def forward(self, batch: dict[str, Tensor], speaker: Tensor, own: Tensor) -> tuple[Tensor, ...]:
        return self.body.run(batch, speaker, own)

    def export(self) -> dict[str, Tensor]:
        """Writes what the flow's own file lacks. The mixer's ones and zeros take a byte each."""
        kept = {k: v.detach() for k, v in self.body.published().items() if k not in SHARED}
        half = {k: v.to(torch.float8_e4m3fn if k == MIXER else torch.float16) for k, v in kept.items()}
        return {f"flow.{k}": v.contiguous() for k, v in half.items()}


def collate(items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    size = max(len(item["mu"]) for item in items)
    padded = [{k: nn.functional.pad(v.float(), (0, 0, 0, size - len(v))) for k, v in item.items()} for item in items]
    lengths = torch.tensor([len(item["mu"]) for item in items])
    batch = {k: torch.stack([item[k] for item in padded]) for k in items[0]}
    return batch | {"real": torch.arange(size) < lengths[:, None]}


def losses(model: Model, batch: dict[str, Tensor], speaker: Tensor, own: Tensor) -> dict[str, Tensor]:
    first, middle, second = model(batch, speaker, own)
    real, (half, rest) = batch["real"][..., None], SPAN.diff()
    count = real.sum() * MEL_BINS
    wanted = (batch["middle"] - batch["noise"]) / half, (batch["end"] - middle.detach()) / rest
    end = middle + rest * second
    found = {
        "first": ((first - wanted[0]).square() * real).sum() / count,
        "second": ((second - wanted[1]).square() * real).sum() / count,
        "end": ((end - batch["end"]).abs() * real).sum() / count,
    }
    return {"loss": sum(found.values()), **found}


@torch.no_grad()
def held_error(model: Model, items: Sequence[dict[str, Tensor]], speaker: Tensor) -> float:
    """Returns the mean difference from the flow's mels, after the prompt."""
    found = []
    for item in items:
        _, middle, second = model(collate([item]), speaker, torch.ones(1, dtype=torch.bool))
        found.append(mel_error((middle + SPAN.diff()[1] * second)[0], item))
    return common.average(found)


def mel_error(mel: Tensor, item: dict[str, Tensor]) -> float:
    return (mel - item["end"].float())[len(item["prompt"]) :].abs().mean().item()


def main(argv: list[str]) -> None:
    parser = common.training_arguments(__doc__, steps=1_800, batch=6, rate=2e-4)
    parser.add_argument("--sentences", type=int, default=250)
    parser.add_argument("--folder", type=Path, help="by default `asset` in the work folder; the decoder is put there")
    args = parser.parse_args(argv)
    clock = common.setup(args)
    args.folder = args.folder or args.work / "asset"
    teacher = Teacher(args.folder)
    if not prepare(args, clock, teacher):
        return
    model = Model(args.folder)
    trainer = common.Trainer("distil", args, model, clock)
    train(args, trainer, model, teacher)
    trainer.save()
    save_file(model.export(), args.folder / MEANFLOW)
    size = sum(file.stat().st_size for file in args.folder.iterdir())
    if size > LIMIT:
        raise ValueError(f"{args.folder} is {size} bytes; {LIMIT} are allowed")
    load_folder(args.folder, "tts", torch.device("cpu"), torch.float32, decoder="meanflow")  # as a user does


def train(args: argparse.Namespace, trainer: common.Trainer, model: Model, teacher: Teacher) -> None:
    items, held = read(args.work, "train"), read(args.work, "test")[:HELD]
    items.sort(key=lambda item: len(item["mu"]))
    if trainer.step == 0:
        far = {f"flow_{n}": common.average([mel_error(teacher.solve(i, n)[1], i) for i in held]) for n in YARDSTICKS}
        common.log("distil", args, step=0, **far, held_error=held_error(model, held, teacher.speaker))

    def of_batch(group: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        own = torch.rand(len(group)) < OWN * trainer.share
        return losses(model, collate(group), teacher.speaker, own)

    batches = common.batches(items, args.batch, random.Random(args.seed + trainer.step))
    trainer.run(batches, of_batch, lambda: {"error": held_error(model, held, teacher.speaker)})
