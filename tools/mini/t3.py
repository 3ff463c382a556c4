"""Stage `t3`: text to codes, by next-code prediction with three helps.

Guidance: the teacher says when each word was spoken, so a few heads are told where in the text to look.
Shared tables: a code is two phones, so its embedding is a sum of theirs, plus a part of its own; rare pairs learn too.
The repetition penalty that sampling applies by default is applied in training as well: these codes repeat by nature,
and the network learns logits that come out right behind it.
"""

from __future__ import annotations

import argparse
import copy
import functools
import math
import random
from functools import reduce
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from tokenizers import normalizers
from torch import Tensor, nn
from torch.nn import functional as F

from chatterbox_opt.config import SPEAKER_DIM, START_TEXT, STOP_SPEECH, STOP_TEXT, TOKEN_RATE
from chatterbox_opt.models.layers import attend
from chatterbox_opt.models.t3 import T3
from chatterbox_opt.text.normalize import punc_norm
from chatterbox_opt.text.tokenizer import EnTokenizer
from chatterbox_opt.weights import keymap, layout

from . import codes, common, vocabulary
from .sizes import CONFIG, Published

CFG = CONFIG.t3
WIDE, NARROW = 0, 1
GUIDED = {1: (2, WIDE), 2: (2, NARROW), 3: (2, NARROW)}  # layer -> its first heads that are told where to look
GUIDANCE = 0.3  # weight of that loss
BLIND = 0.1  # share of rows without text, for classifier-free guidance
PENALTY = 1.2
CHEAP = 0.5  # share of batches without the penalty, so that greedy decoding without it works too
JOINED = 0.15  # share of batches of several sentences in one breath: positions that no single one reaches
MOST = 4  # sentences in such an example
SPELLINGS = 2  # of each sentence
UNKNOWN = 0.25  # share of the words of a further spelling that come as letters
APART = 0.3  # share of the merges of letters that are left out there


# ---- data ----------------------------------------------------------------------------------------


def words(ids: list[int], space: int) -> list[tuple[int, int]]:
    """Where in the text (both ends included in `ids`) each word stands, marks behind it included."""
    spans, start = [], 1
    for i, token in enumerate(ids):
        if token == space:
            spans.append((start, i))
            start = i + 1
    return [*spans, (start, len(ids) - 1)]


def windows(ids: list[int], item: dict[str, Any], steps: int, space: int, letters: list[int]) -> Tensor:
    """(steps, 2, 2): the first and last text position that a step may look at, widely and narrowly. Widely it is the
    word being spoken and its neighbours, narrowly the letter group being spoken and its neighbours, as far through its
    word as the time is. Where the teacher runs words together, position by proportion, with more room. `letters` of
    each id."""
    places, end = words(ids, space), len(ids) - 1
    ends = list(accumulate(item["samples"]))
    blanks = [ends[i] for i, phoneme in enumerate(item["phonemes"]) if phoneme == " "]
    if len(blanks) + 1 != len(places):
        centres = [int(step * len(ids) / steps) for step in range(steps)]
        return torch.tensor([[[max(0, c - 8), min(end, c + 8)], [max(0, c - 4), min(end, c + 4)]] for c in centres])
    times = [t / item["rate"] * TOKEN_RATE for t in (0, *blanks, ends[-1])]
    out, w = [], 0
    for step in range(steps):
        now = step + 0.5
        while w < len(places) - 1 and now > times[w + 1]:
            w += 1
        first, last = places[w]
        said = (now - times[w]) / max(1.0, times[w + 1] - times[w]) * sum(letters[first : last + 1])
        while first < last and said > letters[first]:
            said -= letters[first]
            first += 1
        wide = [places[max(0, w - 1)][0], places[min(len(places) - 1, w + 1)][1]]
        out.append([wide, [max(1, first - 1), min(end, first + 1)]])
    return torch.tensor(out)


def examples(work: Path, part: str, tokenizer: EnTokenizer, spellings: int = 1) -> list[dict[str, Tensor]]:
    """`spellings` of each sentence: beyond the first, some of its words are taken for unknown, and some of their letter
    groups are left apart, so that T3 learns to read the words that the lexicon lacks."""
    items = common.read(work, part, ("text", "phonemes", "samples", "rate", "codes"))
    rng = random.Random(0)
    plain = copy.copy(tokenizer)
    plain.tokenizer = copy.deepcopy(tokenizer.tokenizer)
    plain.tokenizer.normalizer = normalizers.Lowercase()
    plain.tokenizer.model.dropout = APART
    known = functools.cache(tokenizer.encode)
    space = tokenizer.encode(" ")[0]
    letters = {i: 1 if piece.startswith("[") else len(piece) for piece, i in tokenizer.tokenizer.get_vocab().items()}
    out = []
    for spelling in range(spellings):
        for item in items:
            ids = [START_TEXT]
            for word in punc_norm(item["text"]).split(" "):
                unknown = spelling and rng.random() < UNKNOWN
                ids += [*(plain.encode(word) if unknown else known(word)), space]
            ids[-1] = STOP_TEXT
            spoken = item["codes"].long()
            if len(ids) <= CFG.text_positions and len(spoken) < CFG.speech_positions - 2:
                target = torch.cat([spoken, torch.tensor([STOP_SPEECH])])
                window = windows(ids, item, len(target), space, [letters[i] for i in ids])
                out.append({"text": torch.tensor(ids), "target": target, "window": window})
    return out


def grouped(items: list[dict[str, Tensor]], size: int) -> list[list[dict[str, Tensor]]]:
    """Batches of equal text length, since the text stands in front of the speech without a gap."""
    items = sorted(items, key=lambda d: (len(d["text"]), len(d["target"])))
    out: list[list[dict[str, Tensor]]] = []
    for item in items:
        if not out or len(out[-1]) == size or len(out[-1][0]["text"]) != len(item["text"]):
            out.append([])
        out[-1].append(item)
    return out


def join(first: dict[str, Tensor], second: dict[str, Tensor], space: int) -> dict[str, Tensor]:
    """Two sentences as one, a blank between them."""
    shift = len(first["text"]) - 1
    return {
        "text": torch.cat([first["text"][:-1], torch.tensor([space]), second["text"][1:]]),
        "target": torch.cat([first["target"][:-1], second["target"]]),
        "window": torch.cat([first["window"][:-1], second["window"] + shift]),
    }


def joined(groups: list[list], count: int, rng: random.Random, space: int) -> list[dict[str, Tensor]]:
    """A batch of `count` sentences a row, with as many fewer rows. Texts of a group are of one length, so their sums
    are too."""
    chosen = [rng.sample(g, len(g)) for g in rng.choices(groups, k=count)]
    rows = max(2, max(len(g) for g in chosen) // count)
    items = [reduce(lambda a, b: join(a, b, space), row) for row in list(zip(*chosen))[:rows]]
    fits = [i for i in items if len(i["text"]) <= CFG.text_positions and len(i["target"]) < CFG.speech_positions]
    return fits or chosen[0]


def collate(items: list[dict[str, Tensor]], device: str) -> tuple[Tensor, Tensor, Tensor]:
    """(B, n) text, (B, s) targets with -1 behind their ends, (B, s, 2, 2) windows."""
    pad = nn.utils.rnn.pad_sequence
    text = torch.stack([i["text"] for i in items])
    target = pad([i["target"] for i in items], batch_first=True, padding_value=-1)
    return text.to(device), target.to(device), pad([i["window"] for i in items], batch_first=True).to(device)


# ---- network -------------------------------------------------------------------------------------


class Guided:
    """T3's attention, as its `kv`: notes how much of the told heads' attention falls into the windows."""

    def __init__(self, window: Tensor, text_at: int, speech_at: int) -> None:
        self.text_at, self.speech_at = text_at, speech_at
        place = torch.arange(speech_at - 1, device=window.device) - text_at
        self.inside = (place >= window[..., :1]) & (place <= window[..., 1:])  # (B, s, 2, keys before speech)
        self.found: list[Tensor] = []

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if layer in GUIDED:
            heads, width = GUIDED[layer]
            a = self.speech_at  # the first step that predicts a code
            scores = q[:, :heads, a:] @ k[:, :heads].transpose(-1, -2) / math.sqrt(q.shape[-1])
            n, t = scores.shape[-2:]
            later = torch.ones(n, t, dtype=torch.bool, device=q.device).triu(a + 1)
            share = scores.masked_fill(later, -torch.inf).softmax(-1)[..., : self.inside.shape[-1]]
            self.found.append((share * self.inside[:, None, :, width]).sum(-1))  # (B, heads, s)
        return attend(q, k, v, causal=True)


class Teach(nn.Module):
    """A whole pass over sentences with known codes, so that one functional call covers it."""

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
    """T3 under its published names, with what its two code tables share between codes."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rules = [r._replace(sources=tuple(f"t3.{s}" for s in r.sources), target=r.target and f"t3.{r.target}")
                 for r in keymap.t3_llama(CFG.head_dim)]
        shapes = {f"t3.{k}": v for k, v in layout.t3(CFG).items() if k not in ("tfmr.embed_tokens.weight",
                                                                               "text_head.weight")}
        with torch.device("meta"):
            net = Teach()
        self.body = Published(net, shapes, rules, seed)
        noise = torch.Generator().manual_seed(seed + 1)
        # [embedding | head, first half | second half]
        self.shared = nn.Parameter(torch.randn(2, 2, codes.PHONES, CFG.dim, generator=noise) * 0.08)
        self.never = nn.Parameter(torch.zeros(CFG.dim))  # head of every code that never occurs

    def tables(self) -> tuple[Tensor, Tensor]:
        """Embedding and head, (6563, D) each."""
        every = torch.arange(codes.PHONES**2, device=self.shared.device)
        both = self.shared[:, 0, every % codes.PHONES] + self.shared[:, 1, every // codes.PHONES]
        both = F.pad(both, (0, 0, 0, CFG.speech_vocab - len(every)))
        own = self.body.published()
        return both[0] + own["t3.speech_emb.weight"], both[1] + own["t3.speech_head.weight"]

    def forward(self, batch: tuple, blind: Tensor, voice: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states, how well the told heads look, and the head's table."""
        embedding, head = self.tables()
        hidden, found = self.body.run(*batch, blind, voice, change={"t3.speech_emb.weight": embedding})
        return hidden, found, head

    def export(self, used: Tensor) -> dict[str, Tensor]:
        embedding, head = self.tables()
        state = {k.removeprefix("t3."): v for k, v in self.body.published().items()}
        unused = torch.ones(CFG.speech_vocab, dtype=torch.bool)
        unused[used.cpu()] = False
        head = torch.where(unused[:, None].to(head.device), self.never, head)
        return state | {"speech_emb.weight": embedding, "speech_head.weight": head}


def voice_of(work: Path, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """What T3 is told about its only voice: the same in training and in conds.pt."""
    item = common.read(work, "train", ("codes",))[-1]
    prompt = item["codes"].long()[: CFG.prompt_tokens][None]
    speaker = torch.randn(1, SPEAKER_DIM, generator=torch.Generator().manual_seed(7))
    file = work / "voice.pt"  # the corpus may grow between two calls
    if not file.exists():
        torch.save((F.normalize(speaker), prompt), file)
    speaker, prompt = torch.load(file, weights_only=True)
    return speaker.to(device), prompt.to(device), torch.full((1, 1, 1), 0.5, device=device)


# ---- loss ----------------------------------------------------------------------------------------


def seen_before(index: Tensor, width: int) -> Tensor:
    """(B, s) columns -> (B, s, width): what was said before each step."""
    said = F.one_hot(index, width).cumsum(1) > 0
    return F.pad(said[:, :-1], (0, 0, 1, 0))


def losses(model: Model, batch: tuple, used: Tensor, voice: Any, penalty: float, blind_share: float) -> dict:
    _, target, _ = batch
    blind = torch.rand(len(target), device=target.device) < blind_share
    if blind_share:  # in training; the teacher has one mood, so any exaggeration is to sound like it
        speaker, prompt, emotion = voice
        voice = speaker, prompt, torch.rand(len(target), 1, 1, device=emotion.device)
    hidden, found, head = model(batch, blind, voice)
    columns = torch.cat([head[used], model.never[None]])
    logits = F.linear(hidden, columns)
    real = target >= 0
    index = torch.searchsorted(used, target.clamp(min=0))
    seen = seen_before(index, len(columns))
    if penalty != 1:
        logits = torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
    rest = math.log(CFG.speech_vocab - len(used))  # the last column stands for as many codes
    logits = torch.cat([logits[..., :-1], logits[..., -1:] + rest], -1)
    ce = F.cross_entropy(logits[real], index[real])
    told = (real & ~blind[:, None])[:, None]  # found is (B, heads, s)
    guide = -(found.clamp(min=1e-4).log() * told).sum() / told.sum().clamp(min=1) / found.shape[1]
    hit = (logits.argmax(-1) == index)[real].float().mean()
    return {"loss": ce + GUIDANCE * guide, "ce": ce, "guide": guide, "hit": hit}


# ---- stage ---------------------------------------------------------------------------------------


def used_codes(work: Path, items: list[dict[str, Tensor]]) -> Tensor:
    """Ids that occur, the end included. The set only grows, as the corpus does."""
    file = work / "used.pt"
    found = torch.cat([i["target"] for i in items] + ([torch.load(file)] if file.exists() else [])).unique()
    torch.save(found, file)
    return found


def main(argv: list[str]) -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--stop-on-growth", type=float, default=0, help="seconds after which newly made data is read")
    args = parser.parse_args(argv)
    clock = common.setup(args)
    tokenizer = prepare_vocabulary(args.work)
    model = Model(args.seed).to(args.device)
    trainer = common.Trainer("t3", args, model, args.rate, args.steps)
    voice = voice_of(args.work, args.device)
    held = grouped(examples(args.work, "test", tokenizer), args.batch)
    rng = random.Random(args.seed + trainer.step)
    while clock.tick() and not trainer.done:
        items = examples(args.work, "train", tokenizer, SPELLINGS)
        used = used_codes(args.work, items + [i for group in held for i in group]).to(args.device)
        common.log("t3", args, examples=len(items), codes=len(used), step=trainer.step)
        train(args, clock, trainer, model, items, used, voice, rng, held, tokenizer.encode(" ")[0])
    trainer.save(clock.spent)


def prepare_vocabulary(work: Path) -> EnTokenizer:
    from .lexicon import lexicon
    from .sentences import corpus

    file = work / "tokenizer.json"
    if not file.exists():
        texts = corpus()[0]
        vocabulary.write(file, texts, CFG.text_vocab, lexicon(texts))
    return EnTokenizer(file)


def train(
    args: argparse.Namespace, clock: common.Clock, trainer: common.Trainer, model: Model, items: list, used: Tensor,
    voice: Any, rng: random.Random, held: list, space: int,
) -> None:
    """Until the time is up, the steps are done, or the corpus is worth reading again."""
    began, notes = clock.spent, []
    groups = [g for g in grouped(items, args.batch) if len(g) > 1]
    for (group,) in common.batches(groups, 1, rng):
        if trainer.done or not clock.tick() or (args.stop_on_growth and clock.spent - began > args.stop_on_growth):
            return
        penalty = 1.0 if rng.random() < CHEAP else PENALTY
        if rng.random() < JOINED:
            group = joined(groups, rng.randint(2, MOST), rng, space)
        found = losses(model, collate(group, args.device), used, voice, penalty, BLIND)
        trainer.update(found["loss"])
        notes.append({k: v.item() for k, v in found.items()})
        if trainer.step % 100 == 0:
            mean = {k: common.average([n[k] for n in notes]) for k in notes[0]}
            notes.clear()
            mean |= check(args, model, used, voice, held)
            common.log("t3", args, step=trainer.step, seconds=clock.spent, **mean)
            trainer.save(clock.spent)


@torch.no_grad()
def check(args: argparse.Namespace, model: Model, used: Tensor, voice: Any, held: list) -> dict[str, float]:
    got = [losses(model, collate(g, args.device), used, voice, PENALTY, 0.0) for g in held]
    return {f"held_{k}": common.average([g[k].item() for g in got]) for k in ("ce", "guide", "hit")}
