"""Training data of T3: text ids, pairs of phones, the text position reached at each code, and the windows for its
guided attention heads."""

from __future__ import annotations

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

from chatterbox_opt.config import START_TEXT, STOP_SPEECH, STOP_TEXT, TOKEN_RATE
from chatterbox_opt.text.normalize import punc_norm
from chatterbox_opt.text.tokenizer import EnTokenizer

from . import codes, common
from .book import Book
from .sizes import CONFIG

CFG = CONFIG.t3
UNKNOWN = 0.25  # share of the words of a further spelling that come as letters


def words(ids: list[int], space: int) -> list[tuple[int, int]]:
    """Returns the first and last index in `ids` of each word, with the punctuation behind it."""
    spans, start = [], 1
    for i, token in enumerate(ids):
        if token == space:
            spans.append((start, i))
            start = i + 1
    return [*spans, (start, len(ids) - 1)]


def spoken_words(item: dict[str, Any]) -> list[list[float]]:
    """Returns, for each part between two blanks, the times at which its phones end, in codes. The time of a stress mark
    belongs to the next phone, that of a length mark to the one before."""
    out: list[list[float]] = [[]]
    for phoneme, end in zip(item["phonemes"], accumulate(item["samples"])):
        now = end / item["rate"] * TOKEN_RATE
        if phoneme == " ":
            out.append([])
        elif phoneme in codes.PLAIN:
            out[-1].append(now)
        elif phoneme == "ː" and out[-1]:
            out[-1][-1] = now
    return out


def matched(written: list[int], said: list[int]) -> list[tuple[int, int]]:
    """Returns how many written and spoken words belong together, from their lengths: the teacher joins some of them."""

    @functools.cache
    def best(i: int, j: int) -> tuple[float, tuple]:
        if i == len(written) and j == len(said):
            return 0, ()
        found: tuple[float, tuple] = (math.inf, ())
        for m, n in ((1, 1), (2, 1), (3, 1), (1, 2), (1, 3)):
            if i + m <= len(written) and j + n <= len(said):
                rest, path = best(i + m, j + n)
                cost = rest + abs(sum(written[i : i + m]) - sum(said[j : j + n])) + 0.5 * (m + n - 2)
                found = min(found, (cost, ((m, n), *path)))
        return found

    return list(best(0, 0)[1]) or [(len(written), len(said))]


def places(ids: list[int], item: dict[str, Any], space: int, letters: list[int]) -> Tensor:
    """Returns (n,) the text position reached at each code: as far into a word as the share of its phones that has been
    spoken; a pause is behind the word. `letters`: of each id, 0 for punctuation."""
    spans, spoken = words(ids, space), spoken_words(item)
    groups, i, j = [], 0, 0
    for m, n in matched([sum(letters[a : b + 1]) for a, b in spans], [len(times) for times in spoken]):
        groups.append((spans[i][0], spans[i + m - 1][1], [t for times in spoken[j : j + n] for t in times]))
        i, j = i + m, j + n
    out, at = [], 0
    heard = codes.unpack(item["codes"].long())[:, 1].tolist()
    for step, phone in enumerate(heard):
        now = step + 0.75
        while at < len(groups) - 1 and (not groups[at][2] or now > groups[at][2][-1]):
            at += 1
        place, last, times = groups[at]
        through = sum(t < now for t in times) / max(1, len(times))
        said = through * sum(letters[place : last + 1]) + 1e-6
        if phone == codes.SILENCE and not through:
            place -= 1
        else:
            while place < last and said >= letters[place]:
                said -= letters[place]
                place += 1
        out.append(max(place, out[-1] if out else 0))
    return torch.tensor(out)


def windows(reached: Tensor, letters: list[int]) -> Tensor:
    """Returns (n + 1, 2, 2) for (n,) positions: the first and last text position of each step's two guided heads. One
    covers the position reached by the code before, the other the text from there to the next letter."""
    ahead = list(range(1, len(letters) + 1))
    for i in reversed(range(len(letters) - 1)):
        ahead[i] = i + 1 if letters[i + 1] or i + 2 == len(letters) else ahead[i + 1]
    here = F.pad(reached, (1, 0))
    after = torch.tensor(ahead).clamp(max=len(letters) - 1)[here]
    return torch.stack([torch.stack([here, here], -1), torch.stack([(here + 1).minimum(after), after], -1)], 1)


def examples(work: Path, part: str, tokenizer: EnTokenizer, spellings: int = 1) -> list[dict[str, Tensor]]:
    """Returns `spellings` examples of each sentence: in all but the first some words are spelled in letters, so that T3
    learns to read words that the lexicon lacks."""
    items = common.read(work, part, ("text", "phonemes", "samples", "rate", "codes"))
    rng = random.Random(0)
    plain = copy.copy(tokenizer)
    plain.tokenizer = copy.deepcopy(tokenizer.tokenizer)
    plain.tokenizer.normalizer, plain.words = normalizers.Lowercase(), None
    known = functools.cache(tokenizer.encode)
    space = tokenizer.encode(" ")[0]
    vocab = tokenizer.tokenizer.get_vocab()
    letters = {i: len(piece) if piece.replace("'", "").isalpha() else 0 for piece, i in vocab.items()}
    out = []
    for spelling in range(spellings):
        for item in items:
            ids = [START_TEXT]
            for word in punc_norm(item["text"]).split(" "):
                unknown = spelling and rng.random() < UNKNOWN
                ids += [*(plain.encode(word) if unknown else known(word)), space]
            ids[-1] = STOP_TEXT
            spoken, length = item["codes"].long(), [letters[i] for i in ids]
            if len(ids) <= CFG.text_positions and len(spoken) < CFG.speech_positions - 2:
                place = places(ids, item, space, length)
                out.append({"text": torch.tensor(ids), "pairs": spoken, "place": place,
                            "window": windows(place, length)})
    return out


def grouped(items: list[dict[str, Tensor]], size: int) -> list[list[dict[str, Tensor]]]:
    """Returns batches of equal text length, because the speech follows the text without padding."""
    items = sorted(items, key=lambda d: (len(d["text"]), len(d["pairs"])))
    out: list[list[dict[str, Tensor]]] = []
    for item in items:
        if not out or len(out[-1]) == size or len(out[-1][0]["text"]) != len(item["text"]):
            out.append([])
        out[-1].append(item)
    return out


def join(first: dict[str, Tensor], second: dict[str, Tensor], space: int) -> dict[str, Tensor]:
    """Returns two sentences as one, with a blank between them."""
    shift = len(first["text"]) - 1
    return {
        "text": torch.cat([first["text"][:-1], torch.tensor([space]), second["text"][1:]]),
        "pairs": torch.cat([first["pairs"], second["pairs"]]),
        "place": torch.cat([first["place"], second["place"] + shift]),
        "window": torch.cat([first["window"][:-1], second["window"] + shift]),
    }


def joined(groups: list[list], count: int, rng: random.Random, space: int) -> list[dict[str, Tensor]]:
    """Returns a batch of `count` sentences per row, with fewer rows. Texts of a group have equal lengths, and so do the
    joined ones."""
    chosen = [rng.sample(g, len(g)) for g in rng.choices(groups, k=count)]
    rows = max(2, max(len(g) for g in chosen) // count)
    items = [reduce(lambda a, b: join(a, b, space), row) for row in list(zip(*chosen))[:rows]]
    fits = [i for i in items if len(i["text"]) <= CFG.text_positions and len(i["pairs"]) < CFG.speech_positions - 1]
    return fits or chosen[0]


def collate(items: list[dict[str, Tensor]], book: Book, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Returns text (B, n), targets (B, s) padded with -1, and windows (B, s, 2, 2)."""
    pad = nn.utils.rnn.pad_sequence
    text = torch.stack([i["text"] for i in items])
    said = [F.pad(book.write(i["pairs"], i["place"]), (0, 1), value=STOP_SPEECH) for i in items]
    target = pad(said, batch_first=True, padding_value=-1)
    return text.to(device), target.to(device), pad([i["window"] for i in items], batch_first=True).to(device)
