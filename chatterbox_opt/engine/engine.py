"""The engine of one model: all concurrent calls share its running batch. Start reading at Engine.step()."""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from ..config import S3GEN_RATE
from ..device_lock import device_lock
from ..openmp import on_cores
from ..options import EngineOptions
from .captures import captured_parts, counts
from .driver import Driver
from .mel import MelRunner
from .rendering import Renderer
from .request import Call, Cancelled, NotFinite, Utterance, check, copy_of, positions
from .scheduler import Scheduler, first_to_join
from .speaking import Speaking
from .stats import Stats
from .wav import WavRunner


class Engine(Driver):
    def __init__(self, tokens: Speaking | None, mel: MelRunner | None, wav: WavRunner | None,
                 options: EngineOptions, device: torch.device) -> None:
        super().__init__(device)
        self.tokens, self.options, self.counted = tokens, options, Stats()
        self.inbox: deque[Call] = deque()  # from any thread
        self.calls: list[Call] = []
        self.waiting: list[Utterance] = []  # for a slot
        self.renderer = Renderer(mel, wav, device, weakref.proxy(self))
        self.scheduler = Scheduler(options.slots, self.renderer.workers.count)

    # ---- the whole system --------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self) -> bool:
        """Does the next piece of work and returns whether there was any."""
        self.accept()
        room = self.room()  # first, because it ends a call for which there is not enough memory
        sounding = self.renderer.candidates(self.calls)
        running = self.renderer.on_other_cores
        plan = self.scheduler.plan(self.waiting, self.speaking, sounding, *room, time.perf_counter(), running)
        with self.share_cores():
            self.prefill(plan.join)
        self.renderer.start(plan.render, self.calls, plan.decode, plan.halt)
        with self.share_cores():
            if plan.decode:
                self.decode()
            rendered = self.renderer.collect(wait_for_one=not (plan.decode or plan.join))
        self.release()
        worked = bool(plan.join or plan.render or plan.decode or rendered)
        self.counted.steps += worked
        return worked

    # ---- state -------------------------------------------------------------------------------------

    @property
    def speaking(self) -> list[Utterance]:
        return [slot.utterance for slot in self.tokens.live] if self.tokens else []

    def room(self) -> tuple[int, Any]:
        """Returns the number of free slots, and the function that tells whether an utterance fits into one."""
        if self.tokens is None or not self.waiting:
            return 0, None
        if not self.tokens.live and (first := first_to_join(self.waiting)) is not None:
            with self.errors_end(first.call):
                self.tokens.reserve(self.options.slots, positions(first, self.tokens.config, self.options))
        return self.tokens.free, self.tokens.fits

    def busy(self) -> bool:
        return bool(self.calls or self.renderer.begun or (self.tokens and self.tokens.live))

    def stats(self) -> dict[str, Any]:
        live = self.tokens.live if self.tokens else []
        captured = counts(captured_parts(self.tokens, self.renderer.mel, self.renderer.wav))
        sizes = dict(live=len(live), waiting=len(self.waiting), rows=sum(len(slot.rows) for slot in live))
        return self.counted.read(**sizes, calls=len(self.calls), captured=captured)

    # ---- the parts of a step -----------------------------------------------------------------------

    def accept(self) -> None:
        """Takes new calls from the inbox and ends cancelled ones."""
        while self.inbox and not self.held:
            self.calls.append(call := self.inbox.popleft())  # first: what fails must find it, or it would never end
            with self.errors_end(call):
                self.check(call)  # again: it may have waited while T3 was replaced by one with fewer text ids
                self.wait_for_inputs(call)
                for u in call.utterances if call.stream else ():
                    u.sound_noise = u.noise.fork()  # before its first token, so that timing changes no noise
                new = [u for u in call.utterances if not u.done]
                self.waiting += [u for u in new if u.stopped is None]
                self.renderer.whole += [u for u in new if u.stopped is not None and not call.stream]
                if not new:
                    self.renderer.finish(call, alone=len(self.calls) == 1)
        for call in list(self.calls):
            with self.errors_end(call):  # its `cancel` is the caller's object
                if call.cancelled:
                    self.end(call, Cancelled("the call was cancelled"))

    def prefill(self, new: Sequence[Utterance]) -> None:
        if not new:
            return
        for u in new:
            u.call.started = True
            self.waiting.remove(u)
        try:
            with self.timed("tokens", new):
                self.tokens.prefill(new)
            self.counted.tokens += len(new)
        except Exception as error:
            alone = [u for u in new if not u.call.done and not u.tokens and u.stopped is None]
            if len(alone) == 1:
                self.end(alone[0].call, error)
            elif alone:  # find out which of them failed
                self.waiting += alone
                for u in alone:
                    self.prefill([u] if not u.call.done else [])
        self.report(new)

    def decode(self) -> None:
        """Draws a block of tokens for every live slot."""
        speaking = self.speaking
        before, start = sum(len(u.tokens) for u in speaking), time.perf_counter()
        try:
            with self.timed("tokens", speaking):
                self.tokens.decode()
        except Exception as error:
            self.fail((u.call for u in speaking), error)
        self.counted.decoded(sum(len(u.tokens) for u in speaking) - before, time.perf_counter() - start)
        self.report(speaking)

    def deliver(self, u: Utterance, wave: Tensor, last: bool) -> None:
        call = u.call
        with self.errors_end(call):
            if not wave.isfinite().all():
                raise NotFinite("the sound is")
            if len(wave):
                self.counted.sounded(call, len(wave))
                call.first_sound = call.first_sound or time.perf_counter()
                call.delivered += len(wave) / S3GEN_RATE
            with self.timed("watermark", [u]):
                call.sink.add(u, wave, last)
            if last:
                self.complete(u)

    def release(self) -> None:
        """Frees the slots of utterances that have all their tokens or whose call is done."""
        if self.tokens is None:
            return
        gone = [s for s in self.tokens.live if s.utterance.stopped or s.utterance.call.done]
        self.tokens.release(gone)
        for u in (slot.utterance for slot in gone if not slot.utterance.call.done):
            if u.stopped == "broken":
                self.end(u.call, NotFinite("the logits are"))
            elif u.voice is None:
                with self.errors_end(u.call):
                    self.complete(u)
            elif not u.call.stream:
                self.renderer.whole.append(u)

    # ---- ends --------------------------------------------------------------------------------------

    def complete(self, u: Utterance) -> None:
        u.done, u.sound = True, None
        u.noise.give_back()
        call = u.call
        call.left -= 1
        if not call.left:
            self.renderer.finish(call, alone=len(self.calls) == 1)
        elif call.stream:
            call.head += 1

    def end(self, call: Call, error: BaseException | None = None) -> None:
        """Removes the call from the engine, with the error that ended it; release() frees its slots."""
        if call.done:
            return
        call.error = error
        self.counted.ended(call)
        call.done = True  # last: another thread reads `error` and the counts once this is set
        self.calls.remove(call)
        self.waiting = [u for u in self.waiting if u.call is not call]
        self.renderer.forget(call)
        call.give_back_noise()
        self.ended(call, error is None)

    def fail(self, calls: Iterable[Call], error: BaseException) -> None:
        """Ends several calls, each with an error of its own: they are raised in several threads."""
        for call in dict.fromkeys(calls):
            self.end(call, copy_of(error))

    @torch.inference_mode()
    def end_all(self, error: BaseException) -> None:
        try:
            self.accept()  # which ends what was cancelled or cannot be spoken for that reason
        finally:
            while self.inbox and not self.held:
                self.calls.append(self.inbox.popleft())
            self.fail(self.calls, error)
        if self.tokens is not None:
            # On a broken device this fails too: `error` says why. Of ended calls the next step frees the slots.
            with suppress(Exception), self._place(), device_lock(self.device):
                self.tokens.clear()

    def close(self) -> None:
        super().close()
        self.renderer.close(wait=not self.inside())

    # ---- helpers -----------------------------------------------------------------------------------

    def check(self, call: Call) -> None:
        """Raises ValueError for an utterance that this model cannot speak."""
        for utterance in call.utterances:
            if utterance.text_ids is not None and utterance.stopped is None:
                check(utterance, self.tokens.config, self.options)

    def report(self, utterances: Sequence[Utterance]) -> None:
        for call in {u.call for u in utterances}:
            if not call.done:
                with self.errors_end(call):
                    call.report()

    def share_cores(self) -> AbstractContextManager:
        """Inside, this thread uses the cores that no other renders on, unless its results depend on their number."""
        same = self.tokens is None or self.tokens.same_on_any_cores
        return on_cores(self.renderer.free_cores if same else None)

    @contextmanager
    def errors_end(self, call: Call) -> Iterator[None]:
        """An exception raised inside ends this call and no other: also those by which asyncio and its like cancel, as
        callbacks may raise them. Ctrl-C and the process's end are for the thread that they reach."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            self.end(call, error)

    @contextmanager
    def timed(self, stage: str, utterances: Sequence[Utterance]) -> Iterator[None]:
        """Adds the time spent inside to `stage` of every call that has one of the utterances."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda" and stage in ("mel", "wav"):
            torch.cuda.current_stream(self.device).synchronize()
        spent = time.perf_counter() - start
        for call in {u.call for u in utterances if not u.call.done}:  # a done call is being read by its caller
            call.seconds[stage] = call.seconds.get(stage, 0.0) + spent
