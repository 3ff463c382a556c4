"""Stage `t3`: text to codes, by next-code prediction with three aids.

Guided heads: the teacher gives the time of each phone, so a few attention heads are trained to look at its text.
Shared tables: a code is two phones and a position, so its embedding is the sum of theirs and a part of its own; rare
codes learn too, and a position has the same embedding in text and speech.
The repetition penalty that sampling applies by default is applied in training as well, as these codes repeat by nature;
and logits are held where it does least: it multiplies them, so the likely ones are to lie just below zero.
"""

from __future__ import annotations

import argparse
import math
import random
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chatterbox_opt.config import SPEAKER_DIM, STOP_SPEECH
from chatterbox_opt.models.layers import attend
from chatterbox_opt.models.t3 import T3
from chatterbox_opt.text.tokenizer import EnTokenizer
from chatterbox_opt.weights import keymap, layout

from . import common, vocabulary
from .book import BASE, PARTS, Book
from .reading import collate, examples, grouped, joined
from .sizes import CONFIG, Published

CFG = CONFIG.t3
GUIDED = (1, 2, 3)  # layers whose first two heads are guided: to the text being spoken, and to the next letter
GUIDANCE = 1.0  # weight of that loss
SHARE = 0.2  # a step of a shared table moves thousands of codes at once, and each code by four of them
SHARPER = 1.6  # the file's logits: unlikely codes become rarer at the usual temperature; 2.5 gets stuck at times
BLIND = 0.1  # share of rows without text, for classifier-free guidance
PENALTY = 1.2
NEAR_ZERO = 1e-2  # weight of the squared log of what all codes sum to: logits are to be logs of probabilities
CHEAP = 0.5  # share of batches without the penalty, so that greedy decoding without it works too
JOINED = 0.15  # share of batches of several sentences in one breath: positions that no single one reaches
MOST = 4  # sentences in such an example
SPELLINGS = 2  # of each sentence


# ---- network -------------------------------------------------------------------------------------


class Guided:
    """T3's attention, as its `kv`: collects how much of the guided heads' attention falls into the windows."""

    def __init__(self, window: Tensor, text_at: int, speech_at: int) -> None:
        self.text_at, self.speech_at = text_at, speech_at
        place = torch.arange(speech_at - 1, device=window.device) - text_at
        inside = (place >= window[..., :1]) & (place <= window[..., 1:])
        self.inside = inside.transpose(1, 2)  # (B, 2, s, keys before speech)
        self.found: list[Tensor] = []

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if layer in GUIDED:
            a = self.speech_at  # the first step that predicts a code
            scores = q[:, :2, a:] @ k[:, :2].transpose(-1, -2) / math.sqrt(q.shape[-1])
            n, t = scores.shape[-2:]
            later = torch.ones(n, t, dtype=torch.bool, device=q.device).triu(a + 1)
            share = scores.masked_fill(later, -torch.inf).softmax(-1)[..., : self.inside.shape[-1]]
            self.found.append((share * self.inside).sum(-1))  # (B, 2, s)
        return attend(q, k, v, causal=True)


class TrainingPass(nn.Module):
    """A pass over sentences with known codes, in one functional call."""

    def __init__(self) -> None:
        super().__init__()
        self.t3 = T3(CFG)

    def forward(self, text: Tensor, target: Tensor, window: Tensor, blind: Tensor, voice: Any) -> tuple:
        speaker, prompt, emotion = (v.expand(len(text), *v.shape[1:]) for v in voice)
        t3, said = self.t3, target[:, :-1].clamp(min=0)
        prefix = t3.voice_prefix(speaker, prompt, emotion)
        spoken = t3.embed_speech(said, torch.arange(said.shape[1], device=text.device))
        x = torch.cat([prefix, t3.text_part(text, blind), spoken], 1)
        first = prefix.shape[1] + text.shape[1] + 1  # the second start token: it predicts the first code
        guided = Guided(window, prefix.shape[1], first)
        hidden = t3(x, torch.arange(x.shape[1], device=x.device)[None], guided)
        return hidden[:, first:], torch.cat(guided.found, 1)


class Model(nn.Module):
    """T3 under its published names, with the tables that codes and positions share."""

    def __init__(self, seed: int, book: Book) -> None:
        super().__init__()
        made_of = F.one_hot(book.parts + torch.tensor([0, *accumulate(PARTS)][:-1]), sum(PARTS)).sum(1)
        made_of = F.pad(made_of, (0, 0, 0, CFG.speech_vocab - len(made_of)))
        self.register_buffer("made_of", made_of.float(), persistent=False)  # (codes, parts)
        rules = [r._replace(sources=tuple(f"t3.{s}" for s in r.sources), target=r.target and f"t3.{r.target}")
                 for r in keymap.t3_llama(CFG.head_dim)]
        shapes = {f"t3.{k}": v for k, v in layout.t3(CFG).items() if k not in ("tfmr.embed_tokens.weight",
                                                                               "text_head.weight")}
        with torch.device("meta"):
            net = TrainingPass()
        self.body = Published(net, shapes, rules, seed)
        noise = torch.Generator().manual_seed(seed + 1)
        self.shared = nn.Parameter(torch.randn(2, sum(PARTS), CFG.dim, generator=noise) * 0.08 / SHARE)
        self.never = nn.Parameter(torch.zeros(CFG.dim))  # head of every code that never occurs

    def tables(self) -> dict[str, Tensor]:
        """Returns the tables that are trained in two parts, under the published names."""
        own = self.body.published()
        shared = self.shared * SHARE
        both = self.made_of @ shared
        ones, places = shared[0, sum(PARTS[:2]) :].split(PARTS[2:])
        count = torch.arange(CFG.text_positions, device=ones.device)
        digits = ones[count % BASE] + places[count % BASE**2]
        names = "speech_emb.weight", "speech_head.weight", "text_pos_emb.emb.weight"
        return {name: own[f"t3.{name}"] + more for name, more in zip(names, (*both, digits))}

    def forward(self, batch: tuple, blind: Tensor, voice: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Returns hidden states, the guided heads' attention inside their windows, and the table of the head."""
        tables = self.tables()
        head = tables.pop("speech_head.weight")
        hidden, found = self.body.run(*batch, blind, voice, change={f"t3.{k}": v for k, v in tables.items()})
        return hidden, found, head

    def export(self, used: Tensor) -> dict[str, Tensor]:
        tables = self.tables()
        state = {k.removeprefix("t3."): v for k, v in self.body.published().items()}
        unused = torch.ones(CFG.speech_vocab, dtype=torch.bool)
        unused[used.cpu()] = False
        tables["speech_head.weight"][unused] = self.never
        tables["speech_head.weight"] *= SHARPER
        return state | tables


def voice_of(work: Path, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Returns T3's conditions for its only voice, the same in training and in conds.pt."""
    item = common.read(work, "train", ("codes",))[-1]
    prompt = item["codes"].long()[: CFG.prompt_tokens]
    prompt = Book.at(work).write(prompt, torch.zeros_like(prompt))[None]
    speaker = torch.randn(1, SPEAKER_DIM, generator=torch.Generator().manual_seed(7))
    file = work / "voice.pt"  # the corpus may grow between two calls
    if not file.exists():
        torch.save((F.normalize(speaker), prompt), file)
    speaker, prompt = torch.load(file, weights_only=True)
    return speaker.to(device), prompt.to(device), torch.full((1, 1, 1), 0.5, device=device)


# ---- loss ----------------------------------------------------------------------------------------


def penalised(logits: Tensor, index: Tensor, penalty: float) -> Tensor:
    """Returns logits (B, s, columns) with the repetition penalty for the (B, s) columns of earlier steps."""
    n = index.shape[1]
    same = index[:, None] == index[..., None]
    since = same.int().argmax(-1)  # (B, s): the step that said each first
    said = since[:, None] < torch.arange(n, device=index.device)[:, None]
    at = index[:, None].expand(-1, n, -1)
    found = logits.gather(2, at)
    return logits.scatter(2, at, torch.where(said, torch.where(found < 0, found * penalty, found / penalty), found))


def losses(model: Model, batch: tuple, used: Tensor, voice: Any, penalty: float, blind_share: float) -> dict:
    _, target, _ = batch
    blind = torch.rand(len(target), device=target.device) < blind_share
    if blind_share:  # in training; the teacher has one mood, so any exaggeration is to sound like it
        speaker, prompt, emotion = voice
        voice = speaker, prompt, torch.rand(len(target), 1, 1, device=emotion.device)
    hidden, found, head = model(batch, blind, voice)
    columns = torch.cat([head[used], model.never[None]])
    logits = F.linear(hidden, columns)
    sums = logits.logsumexp(-1)
    real = target >= 0
    index = torch.searchsorted(used, target.clamp(min=0))
    if penalty != 1:
        logits = penalised(logits, index, penalty)
    rest = math.log(CFG.speech_vocab - len(used))  # the last column stands for as many codes
    logits = torch.cat([logits[..., :-1], logits[..., -1:] + rest], -1)
    ce = F.cross_entropy(logits[real], index[real])
    told = (real & ~blind[:, None])[:, None]  # found is (B, heads, s)
    guide = -(found.clamp(min=1e-4).log() * told).sum() / (told.sum().clamp(min=1) * found.shape[1])
    sums = sums[real].square().mean()
    hit = (logits.argmax(-1) == index)[real].float().mean()
    return {"loss": ce + GUIDANCE * guide + NEAR_ZERO * sums, "ce": ce, "guide": guide, "sums": sums, "hit": hit}


# ---- stage ---------------------------------------------------------------------------------------


def used_codes(work: Path, items: list[dict[str, Tensor]], book: Book) -> Tensor:
    """Returns the codes that occur, and the stop code. The set only grows, as the corpus does."""
    file = work / "used.pt"
    said = [torch.tensor([STOP_SPEECH]), *(book.write(i["pairs"], i["place"]) for i in items)]
    found = torch.cat([*said, torch.load(file)] if file.exists() else said).unique()
    torch.save(found, file)
    return found


def main(argv: list[str]) -> None:
    parser = common.training_arguments(__doc__, steps=15_000, batch=16, rate=1.4e-3)
    parser.add_argument("--stop-on-growth", type=float, default=0, help="seconds after which newly made data is read")
    args = parser.parse_args(argv)
    clock = common.setup(args)
    tokenizer = prepare_vocabulary(args.work)
    book = Book.at(args.work, common.read(args.work, "train", ("codes",)))
    model = Model(args.seed, book).to(args.device)
    trainer = common.Trainer("t3", args, model, clock)
    voice = voice_of(args.work, args.device)
    held = grouped(examples(args.work, "test", tokenizer), args.batch)
    rng = random.Random(args.seed + trainer.step)
    while clock.tick() and not trainer.done:
        items = examples(args.work, "train", tokenizer, SPELLINGS)
        used = used_codes(args.work, items + [i for group in held for i in group], book).to(args.device)
        common.log("t3", args, examples=len(items), codes=len(used), step=trainer.step)
        train(args, trainer, model, items, book, used, voice, rng, held, tokenizer.encode(" ")[0])
    trainer.save()


def prepare_vocabulary(work: Path) -> EnTokenizer:
    from .lexicon import lexicon
    from .sentences import corpus

    file = work / "tokenizer.json"
    if not file.exists():
        vocabulary.write(file, lexicon(corpus()[0]))
    return EnTokenizer(file)


def train(
    args: argparse.Namespace, trainer: common.Trainer, model: Model, items: list, book: Book, used: Tensor, voice: Any,
    rng: random.Random, held: list, space: int,
) -> None:
    """Until the time is up, the steps are done, or the corpus is worth reading again."""
    groups = [g for g in grouped(items, args.batch) if len(g) > 1]
    ends = trainer.clock.spent + (args.stop_on_growth or math.inf)

    def of_batch(chosen: list[list[dict[str, Tensor]]]) -> dict[str, Tensor]:
        (group,) = chosen
        penalty = 1.0 if rng.random() < CHEAP else PENALTY
        if rng.random() < JOINED:
            group = joined(groups, rng.randint(2, MOST), rng, space)
        return losses(model, collate(group, book, args.device), used, voice, penalty, BLIND)

    def held_out() -> dict[str, float]:
        got = [losses(model, collate(g, book, args.device), used, voice, PENALTY, 0.0) for g in held]
        return {k: common.average([g[k].item() for g in got]) for k in ("ce", "guide", "sums", "hit")}

    until_growth = takewhile(lambda _: trainer.clock.spent <= ends, common.batches(groups, 1, rng))
    trainer.run(until_growth, of_batch, held_out)
