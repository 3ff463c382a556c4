"""Tokens become sound: whose chunk enters the flow, beside whose, and what leaves the vocoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from .chunks import LOOKAHEAD, MelState, Sound, WaveState
from .mel import MelRunner, Row, Solve
from .request import Call, Utterance
from .scheduler import chunk_due
from .wav import WavRunner


@dataclass(eq=False)
class Rendering:
    """Chunks of several utterances on their way through the flow."""

    utterances: list[Utterance]
    rows: list[Row]
    solve: Solve | None


class Renderer:
    def __init__(
        self, mel: MelRunner, wav: WavRunner, deliver: Callable[[Utterance, Tensor, bool], None],
        blaming: Callable[[Call], AbstractContextManager],
        timed: Callable[[str, Sequence[Utterance]], AbstractContextManager],
    ) -> None:
        """`deliver(utterance, samples, last)`; within `blaming(call)` errors are that call's; `timed` counts seconds.
        """
        self.mel, self.wav, self.deliver, self.blaming, self.timed = mel, wav, deliver, blaming, timed
        self.whole: list[Utterance] = []  # all of whose tokens are there, to be rendered in one
        self.begun: list[Rendering] = []

    def candidates(self, calls: Sequence[Call]) -> list[Utterance]:
        """Whose sound is being made, or could be."""
        heads = [call.utterances[call.head] for call in calls if call.stream]
        return [r.utterances[0] for r in self.begun] + self.whole + [u for u in heads if not u.rendering]

    def advance(self, utterance: Utterance, calls: Sequence[Call]) -> None:
        """A step of the flow for a chunk of this utterance and those that are rendered beside it; then its sound."""
        rendering = next((r for r in self.begun if utterance in r.utterances), None) or self.begin(utterance, calls)
        if rendering is None:
            return
        try:
            with self.timed("mel", rendering.utterances):
                self.mel.advance(rendering.solve)
            if rendering.solve.done:
                self.begun.remove(rendering)
                self.vocode(rendering.utterances, rendering.solve.mels())
        except Exception as error:
            self.retry_alone(rendering, error)

    def begin(self, first: Utterance, calls: Sequence[Call]) -> Rendering | None:
        """What is due and fits beside `first` enters the flow with it."""
        due = [u for u in self.candidates(calls) if u is not first and u.steps == first.steps and chunk_due(u)]
        together = Rendering([], [], None)
        for u in [first, *due]:
            longest = max((len(row.noise) for row in together.rows), default=0)
            if together.rows and not self.mel.fits(len(together.rows) + 1, longest):
                break
            with self.blaming(u.call), self.timed("mel", [u]):
                row = self.begin_chunk(u)
            if row is None or u.call.done:
                continue
            if self.mel.fits(len(together.rows) + 1, max(longest, len(row.noise))):
                together.utterances.append(u)
                together.rows.append(row)
            else:  # its noise is drawn: it enters by itself, and is served in its turn
                self.enter(Rendering([u], [row], None))
        return self.enter(together) if together.rows else None

    def enter(self, rendering: Rendering) -> Rendering | None:
        try:
            with self.timed("mel", rendering.utterances):
                rendering.solve = self.mel.begin(rendering.rows, rendering.utterances[0].steps)
        except Exception as error:
            self.retry_alone(rendering, error)
            return None
        self.begun.append(rendering)
        return rendering

    def begin_chunk(self, u: Utterance) -> Row | None:
        """The row of its next chunk. One without anything new to solve is told at once."""
        count, last = chunk_due(u)
        if u in self.whole:
            self.whole.remove(u)
        if u.sound is None:
            noise = u.noise.fork() if u.call.stream else u.noise  # a stream's tokens are drawn as they are without it
            u.sound = Sound(MelState(u.voice, noise, u.steps), WaveState(self.wav, noise), u.drop_last_token)
        tokens = torch.tensor(u.audible(None if last else count), dtype=torch.long)
        u.rendering = True
        if u.call.stream:
            u.told, u.call.size = count - LOOKAHEAD, next(u.call.chunks)
        job = u.sound.begin(tokens, last)
        if job is None:
            self.vocode([u], [None])
            return None
        return self.mel.row(job)

    def vocode(self, utterances: Sequence[Utterance], mels: Sequence[Tensor | None]) -> None:
        with self.timed("wav", utterances):
            windows = [u.sound.window(mel) for u, mel in zip(utterances, mels) if not u.call.done]
            some = [w for w in windows if w is not None]
            waves = iter(self.wav.decode([mel for mel, _ in some], [spectrum for _, spectrum in some]))
            live = [u for u in utterances if not u.call.done]
            new = [u.sound.accept(None if w is None else next(waves)) for u, w in zip(live, windows)]
        for u, wave in zip(live, new):
            u.rendering = False
            self.deliver(u, wave, u.sound.last)

    def retry_alone(self, rendering: Rendering, error: Exception) -> None:
        """One of several utterances may be the reason."""
        self.begun = [r for r in self.begun if r is not rendering]
        if len(rendering.utterances) == 1:
            with self.blaming(rendering.utterances[0].call):
                raise error
        for u, row in zip(rendering.utterances, rendering.rows):
            if u.rendering and not u.call.done:
                self.enter(Rendering([u], [row], None))

    def forget(self, call: Call) -> None:
        self.whole = [u for u in self.whole if u.call is not call]
        self.begun = [r for r in self.begun if not all(u.call.done for u in r.utterances)]
