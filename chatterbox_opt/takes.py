"""Draws several takes of each piece of a text in one batch and keeps the best; draws pieces that went wrong again."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from .config import S3GEN_RATE
from .engine.engine import Engine
from .engine.noise import RequestNoise
from .engine.request import Call, Utterance
from .engine.seeds import piece_seed
from .scores import PlausibleLength, Take
from .voice import Conditionals, detached_copy

logger = logging.getLogger(__name__)

TAKES, RETRIES = (1, 64), (0, 20)  # fewest and most


@dataclass(frozen=True)
class Takes:
    """`count` takes are drawn of each piece, with the text's seed and the following numbers; the one with the highest
    `score` is kept. If all takes of a piece were stopped by the guard or have no sound, `count` further ones are drawn
    with the following seeds, up to `retries` times."""

    count: int = 1
    score: Callable[[Take], float] | None = None
    retries: int = 0

    def __post_init__(self) -> None:
        for name, value, (low, high) in (("takes", self.count, TAKES), ("retries", self.retries, RETRIES)):
            if not isinstance(value, Integral) or isinstance(value, bool) or not low <= value <= high:
                raise ValueError(f"{name}={value!r}: a whole number from {low} to {high} is needed")
        if self.score is not None and not callable(self.score):
            raise ValueError(f"score is {type(self.score).__name__}: a function of a Take is needed, see scores.py")


def asked_for(count: int = 1, score: Callable[[Take], float] | None = None, retries: int = 0) -> Takes | None:
    """Returns None for a single take, with nothing to choose from. Raises ValueError if a score is given then."""
    takes = Takes(count, score, retries)
    if takes.count > 1 or takes.retries:
        return takes
    if score is not None:
        raise ValueError("score chooses among takes: give takes=2 or more, or retries=1 or more")
    return None


@dataclass
class Choice:
    """All takes of one piece in order, and which of them was kept."""

    seeds: list[int]  # per take; a call with this seed and one take gives the same sound
    stops: list[str]  # per take: "eos" | "limit" | "guard"
    scores: list[float | None]  # per take; None if it was not scored
    kept: int  # index of the take that was kept
    tries: int  # 1 plus the number of retries

    @property
    def seed(self) -> int:
        return self.seeds[self.kept]


@dataclass(eq=False)
class _Piece:
    asked: Utterance  # without tokens and noise
    index: int  # in its text
    seed: int  # of its text
    takes: list[Utterance] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    tries: int = 0

    def add_takes(self, count: int, device: torch.device) -> list[Utterance]:
        """Returns utterances with the next seeds, without a voice: only their tokens are needed."""
        seeds = [(self.seed + len(self.seeds) + k) % 2**64 for k in range(count)]
        noises = [RequestNoise(device, piece_seed(seed, self.index)) for seed in seeds]
        new = [dataclasses.replace(self.asked, voice=None, tokens=[], noise=noise) for noise in noises]
        self.takes, self.seeds, self.tries = self.takes + new, self.seeds + seeds, self.tries + 1
        return new

    def candidates(self) -> list[int]:
        """Returns the indices of takes that went well; of all if none did."""
        return [k for k, u in enumerate(self.takes) if went_well(u)] or list(range(len(self.takes)))


def _pieces(job: Any, utterances: Sequence[Utterance]) -> list[_Piece]:
    seed = int(torch.randint(2**62, (), device="cpu").item()) if job.seed is None else job.seed
    return [_Piece(u, k, seed) for k, u in enumerate(utterances)]


def went_well(utterance: Utterance) -> bool:
    return utterance.stopped != "guard" and bool(utterance.audible())


class TakeSelection:
    """Draws, scores and chooses the takes of one call."""

    def __init__(
        self, engine: Engine, takes: Takes, device: torch.device, cancel: Any = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.engine, self.takes, self.device, self.cancel, self.progress = engine, takes, device, cancel, progress
        self.score = takes.score or PlausibleLength()
        self.sounds: dict[Utterance, Tensor] = {}  # (N,) on the CPU, of takes rendered for their score
        self.seconds: dict[str, float] = {}  # spent on each stage
        self._counted = (0, 0)  # tokens of earlier tries: drawn, at most

    def run(
        self, jobs: Sequence[Any], per_job: Sequence[Sequence[Utterance]]
    ) -> tuple[list[list[Utterance]], list[list[Choice]]]:
        """Returns (per job: the chosen utterances, with tokens, ready to render; per job: the Choice of each)."""
        pieces = [_pieces(job, own) for job, own in zip(jobs, per_job)]
        every = [piece for own in pieces for piece in own]
        self._draw(every)
        scores = self._scores(every)
        kept = {piece: self._keep(piece, scores) for piece in every}
        chosen = [[self._ready(piece.takes[kept[piece].kept], piece) for piece in own] for own in pieces]
        return chosen, [[kept[piece] for piece in own] for own in pieces]

    def _draw(self, pieces: Sequence[_Piece]) -> None:
        for left in range(self.takes.retries, -1, -1):
            new = [u for piece in pieces for u in piece.add_takes(self.takes.count, self.device)]
            self._call(new, progress=self._report if self.progress else None)
            drawn, ceiling = self._counted
            drawn += sum(len(u.tokens) for u in new)
            self._counted = drawn, ceiling + sum(u.sampling.max_new_tokens for u in new)
            pieces = [piece for piece in pieces if not any(map(went_well, piece.takes))]
            if not pieces:
                return
            for piece in pieces if left else ():
                logger.warning("speech went wrong and is drawn again with another seed: %r...", piece.asked.text[:40])

    def _scores(self, pieces: Sequence[_Piece]) -> dict[Utterance, float]:
        """Returns the score of each take, of the pieces that have several to choose from."""
        asked = [(piece, k) for piece in pieces for k in piece.candidates() if len(piece.candidates()) > 1]
        if not asked:
            return {}
        if getattr(self.score, "needs_sound", True):
            heard = [(piece, piece.takes[k]) for piece in pieces for k in piece.candidates()]
            ready = {u: self._ready(u, piece) for piece, u in heard}
            sink = _Sounds()
            self._call(list(ready.values()), sink)
            self.sounds = sink.waves
            for piece in pieces:
                piece.takes = [ready.get(u, u) for u in piece.takes]
        return {piece.takes[k]: self._scored(piece, k) for piece, k in asked}

    def _scored(self, piece: _Piece, k: int) -> float:
        u, asked = piece.takes[k], piece.asked
        wav = self.sounds.get(u)
        if wav is not None and not len(wav):
            return -math.inf
        take = Take(
            asked.text, asked.read, torch.tensor(u.audible(), dtype=torch.long, device="cpu"), str(u.stopped),
            piece.seeds[k], Conditionals(asked.cond, asked.voice or {}), S3GEN_RATE,
            None if wav is None else wav.unsqueeze(0),
        )
        score = float(self.score(take))
        if math.isnan(score):
            raise ValueError(f"score gave {score} for {asked.text[:40]!r}: a number is needed")
        return score

    def _keep(self, piece: _Piece, scores: dict[Utterance, float]) -> Choice:
        given = [scores.get(u) for u in piece.takes]
        kept = max(piece.candidates(), key=lambda k: (given[k] or 0.0, -k))
        return Choice(piece.seeds, [str(u.stopped) for u in piece.takes], given, kept, piece.tries)

    def _ready(self, drawn: Utterance, piece: _Piece) -> Utterance:
        """Returns the utterance to render, whose noise continues that of its tokens; itself if rendered already."""
        if drawn in self.sounds:
            return drawn
        return dataclasses.replace(
            piece.asked, tokens=drawn.tokens, stopped=drawn.stopped, noise=drawn.noise, searched=drawn.searched
        )

    def _call(self, utterances: Sequence[Utterance], sink: Any = None, progress: Any = None) -> None:
        call = Call(utterances, sink, cancel=self.cancel, progress=progress, counts=False)
        self.engine.run(call)
        for stage, spent in call.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent

    def _report(self, drawn: int, ceiling: int) -> None:
        if self.progress is not None:
            self.progress(self._counted[0] + drawn, self._counted[1] + ceiling)


class _Sounds:
    """Sink that keeps the sound of each utterance separately."""

    def __init__(self) -> None:
        self.waves: dict[Utterance, Tensor] = {}

    def add(self, utterance: Utterance, wave: Tensor, last: bool) -> None:
        self.waves[utterance] = detached_copy(wave.float(), "cpu")

    def finish(self) -> None: ...
