"""From tokens to sound: which chunks go through flow and vocoder together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .chunks import LOOKAHEAD, MelState, Sound, WaveState
from .mel import MelRunner, Row, Solve
from .place import LOOK
from .request import Call, Utterance
from .scheduler import chunk_due
from .wav import WavRunner
from .workers import Workers, outcome

BRIEF = 20.0  # s of sound that is joined and marked within a step: it takes a hundredth of that


@dataclass(eq=False)
class Rendering:
    """A batch of chunks, of several utterances, on its way through flow and vocoder."""

    utterances: list[Utterance]
    rows: list[Row]  # empty if the flow has nothing left to solve
    solve: Solve | None = None  # None: not encoded yet
    waves: list[Tensor] | None = None  # (N,) per row, once vocoded
    cores: int = 0  # on which another thread works on it
    halt: bool = False  # that thread is to stop after a step


class Host(Protocol):
    """What a renderer needs of the engine."""

    def deliver(self, u: Utterance, wave: Tensor, last: bool) -> None:
        """Takes sound."""

    def end(self, call: Call, error: BaseException | None = None) -> None: ...

    def fail(self, calls: Iterable[Call], error: BaseException) -> None: ...

    def errors_end(self, call: Call) -> AbstractContextManager:
        """Errors inside end this call alone."""

    def timed(self, stage: str, utterances: Sequence[Utterance]) -> AbstractContextManager:
        """The time inside counts for the stage."""


class Renderer:
    def __init__(self, mel: MelRunner, wav: WavRunner, device: torch.device, engine: Host) -> None:
        """`engine` is a weak reference: a model that is dropped frees its memory at once."""
        self.mel, self.wav, self.engine = mel, wav, engine
        self.workers = Workers(device, mel and mel.at_once)
        self.whole: list[Utterance] = []  # all tokens drawn, to be rendered as one chunk
        self.begun: list[Rendering] = []
        self.running: dict[Rendering, Future[Exception | None]] = {}  # on other threads
        self.finishing: dict[Call, Future[Exception | None]] = {}  # whose sinks finish on a core each

    def candidates(self, calls: Sequence[Call]) -> list[Utterance]:
        """Returns the utterances whose sound could be worked on next."""
        heads = [call.utterances[call.head] for call in calls if call.stream]
        begun = [r.utterances[0] for r in self.begun if r not in self.running]
        return begun + self.whole + [u for u in heads if not u.rendering]

    def start(
        self, utterances: Sequence[Utterance], calls: Sequence[Call], beside: bool, halt: Sequence[Utterance] = ()
    ) -> None:
        """Starts on the batches that hold these utterances: one step of the flow, and after the last one the vocoder.
        A single batch is worked on here, by all cores, unless other work goes on `beside` it. Other threads go on by
        themselves, unless they are to `halt` or other cores have become free for them."""
        chosen: list[Rendering] = []
        for u in utterances:
            rendering = next((r for r in self.begun if u in r.utterances), None) or self.begin(u, calls)
            if rendering is not None and rendering not in chosen:
                chosen.append(rendering)
        chosen = [r for r in chosen if r in self.begun]  # the next one of a call may have failed and ended the call
        if len(chosen) == 1 and not (self.running or self.finishing or beside):
            self.settle(chosen[0], outcome(self.work, chosen[0]))
            return
        sharing = len(self.running) + len(chosen) + beside
        share = max(1, (self.workers.count - len(self.finishing)) // max(1, sharing))
        for rendering in self.running:
            rendering.halt |= rendering.cores != share or rendering.utterances[0] in halt
        for rendering in chosen:
            rendering.cores, rendering.halt = share, False
            self.running[rendering] = self.workers.start(self.work_on, rendering, share)

    @property
    def free_cores(self) -> int | None:
        """Number of cores for this thread; None: all."""
        taken = sum(rendering.cores for rendering in self.running) + len(self.finishing)
        return max(1, self.workers.count - taken) if taken else None

    @property
    def on_other_cores(self) -> list[Utterance]:
        """Returns an utterance for each piece of work that goes on by itself."""
        return [rendering.utterances[0] for rendering in self.running] + [call.utterances[0] for call in self.finishing]

    def collect(self, wait_for_one: bool) -> bool:
        """Settles what other threads have done; returns whether they had, or have, anything to do."""
        busy = bool(self.running or self.finishing)
        if wait_for_one and busy:
            wait([*self.running.values(), *self.finishing.values()], LOOK, FIRST_COMPLETED)
        done = [rendering for rendering, future in self.running.items() if future.done()]
        for rendering in done:
            if (future := self.running.pop(rendering, None)) is not None:  # what another delivers may end its calls
                self.settle(rendering, future.result())
        for call in [call for call, future in self.finishing.items() if future.done()]:
            with self.engine.errors_end(call):
                self.engine.end(call, self.finishing.pop(call).result())
        return busy

    def finish(self, call: Call, alone: bool) -> None:
        """Ends a call all of whose sound is there. Joining and marking a long speech takes seconds: unless the call is
        alone, another core does that. A short one is faster on all cores."""
        if call.sink is None:
            self.engine.end(call)
        elif call.stream or alone or call.delivered < BRIEF or self.workers.count == 1:
            self.engine.end(call, outcome(self.finish_sink, call))
        else:
            self.finishing[call] = self.workers.start(self.finish_sink, call, cores=1)

    def finish_sink(self, call: Call) -> None:
        with self.engine.timed("watermark", call.utterances[:1]):
            call.sink.finish()

    def settle(self, rendering: Rendering, error: Exception | None) -> None:
        """Delivers the sound, if this was the last step of a batch."""
        if error is not None:
            self.retry_alone(rendering, error)
        elif rendering.waves is not None:
            self.begun.remove(rendering)
            for u, wave in zip(rendering.utterances, rendering.waves):
                u.rendering = False
                if not u.call.done:
                    self.engine.deliver(u, wave, u.sound.last)

    def work(self, rendering: Rendering) -> None:
        """Does one step of a batch; changes nothing but the batch and its utterances, so batches can run in parallel,
        and while tokens are drawn."""
        utterances, rows = rendering.utterances, rendering.rows
        with self.engine.timed("mel", utterances):
            if rows and rendering.solve is None:
                rendering.solve = self.mel.begin(rows, utterances[0].steps)
            if rows:
                self.mel.advance(rendering.solve)
        if not rows or rendering.solve.done:
            mels = rendering.solve.mels() if rows else [None] * len(utterances)
            with self.engine.timed("wav", utterances):
                rendering.waves = self.vocode([u.sound for u in utterances], mels)

    def work_on(self, rendering: Rendering) -> None:
        """As many steps of a batch as nothing speaks against: the engine may be busy when one ends. Of a stream it is
        one, as the chunk of another listener may have become due."""
        self.work(rendering)
        while rendering.waves is None and not rendering.halt:
            if any(u.call.stream for u in rendering.utterances) or all(u.call.done for u in rendering.utterances):
                return
            self.work(rendering)

    def vocode(self, sounds: Sequence[Sound], mels: Sequence[Tensor | None]) -> list[Tensor]:
        windows = [sound.window(mel) for sound, mel in zip(sounds, mels)]
        some = [w for w in windows if w is not None]
        waves = iter(self.wav.decode([mel for mel, _ in some], [spectrum for _, spectrum in some]))
        return [sound.accept(None if w is None else next(waves)) for sound, w in zip(sounds, windows)]

    def begin(self, first: Utterance, calls: Sequence[Call]) -> Rendering | None:
        """Starts a batch of `first` and of the due chunks that fit beside it."""
        due = [u for u in self.candidates(calls) if u is not first and u.steps == first.steps and chunk_due(u)]
        together = Rendering([], [])
        for u in [first, *due]:
            longest = max((len(row.noise) for row in together.rows), default=0)
            if together.utterances and not self.mel.fits(len(together.rows) + 1, longest):
                break
            row = None
            with self.engine.errors_end(u.call):
                row = self.begin_chunk(u)
            if u.call.done:
                continue
            if row is not None and self.mel.fits(len(together.rows) + 1, max(longest, len(row.noise))):
                together.utterances.append(u)
                together.rows.append(row)
            else:  # its noise is already drawn: it becomes a batch of its own
                self.begun.append(Rendering([u], [] if row is None else [row]))
        if together.rows:
            self.begun.append(together)
        return next((r for r in self.begun if first in r.utterances), None)

    def begin_chunk(self, u: Utterance) -> Row | None:
        """Returns the row of its next chunk, if the flow has anything to solve for it."""
        count, last = chunk_due(u)
        if u in self.whole:
            self.whole.remove(u)
        if u.sound is None:
            noise = u.sound_noise or u.noise
            u.sound = Sound(MelState(u.voice, noise, u.steps), WaveState(self.wav, noise), u.drop_last_token)
        tokens = torch.tensor(u.audible(None if last else count), dtype=torch.long)
        u.rendering = True
        if u.call.stream:
            u.rendered, u.call.size = count - LOOKAHEAD, next(u.call.chunks)
        job = u.sound.begin(tokens, last)
        return None if job is None else self.mel.row(job)

    def retry_alone(self, rendering: Rendering, error: BaseException) -> None:
        """After an error each utterance is rendered alone, as one of them may be the cause."""
        self.begun.remove(rendering)
        if len(rendering.utterances) == 1 or (rendering.solve is not None and rendering.solve.done):
            self.engine.fail((u.call for u in rendering.utterances), error)
            return
        self.begun += [Rendering([u], [row]) for u, row in zip(rendering.utterances, rendering.rows) if not u.call.done]

    def forget(self, call: Call) -> None:
        """Drops what is left of a call that has ended. A thread may still be at a step of it, for which nobody waits;
        its memory goes with that step."""
        self.whole = [u for u in self.whole if u.call is not call]
        self.begun = [r for r in self.begun if not all(u.call.done for u in r.utterances)]
        self.running = {r: future for r, future in self.running.items() if r in self.begun}
        self.finishing.pop(call, None)

    def close(self, wait: bool) -> None:
        """Other threads end after the step that they are at. `wait`: until they have."""
        for rendering in list(self.running):
            rendering.halt = True
        self.workers.close(wait)
