"""From text tokens to speech tokens, on any device: utterances join by prefill(), advance by a block per decode(), and
leave by release()."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import STOP_SPEECH, T3Config
from ..options import EngineOptions
from .endings import ending
from .prefix import Prefix
from .request import Utterance
from .sampling import Filters
from .slots import Slot, Slots
from .transfers import fetch


@dataclass(eq=False)
class Block:
    """The next tokens of all slots that were live when it was begun."""

    slots: list[Slot]
    before: list[Tensor | None]  # the state of each utterance's generator before it
    drawn: Callable[[], list[list[int]]]  # waits for the tokens


class Speaking:
    """The host's part. Subclasses, each T3 on one kind of device, implement `fits`, `reserve`, `warmup`, `prefill`,
    `_prompt`, `_pick`, `_block` and `_remove`."""

    slots: Slots | None = None
    same_on_any_cores = True  # whether a step's result is independent of the number of threads
    draws_ahead = False  # whether the next block is begun before the host looks at the tokens of the last
    _ahead: Block | None = None  # begun, and not looked at

    def __init__(self, config: T3Config, options: EngineOptions, device: torch.device) -> None:
        """`device`: where the slots' tensors are."""
        self.config, self.options, self.device = config, options, device

    @property
    def live(self) -> list[Slot]:
        return [] if self.slots is None else self.slots.live

    @property
    def free(self) -> int:
        """Number of free slots."""
        most = self.options.slots
        return most if self.slots is None else min(most, self.slots.capacity) - len(self.live)

    def fits(self, utterance: Utterance) -> bool:
        """Whether it can join the running batch."""
        raise NotImplementedError

    def reserve(self, slots: int, length: int) -> None:
        """Allocates memory for so many utterances of up to `length` positions. Only while no slot is live."""
        raise NotImplementedError

    def warmup(self, batch: int = 1) -> None:
        """Captures and compiles in advance what `batch` utterances of ordinary length would otherwise wait for."""
        raise NotImplementedError

    def prefill(self, new: Sequence[Utterance]) -> None:
        """Gives each a slot and draws its first token."""
        raise NotImplementedError

    def _prompt(self, added: list[Slot], prefixes: list[Prefix]) -> Tensor:
        """Prefills voice and text into the rows of new slots; returns (rows, V) logits of their first tokens."""
        raise NotImplementedError

    def _pick(self, logits: Tensor, cond: Tensor, uncond: Tensor, span: slice, filters: Filters) -> Tensor:
        """Returns (N,) tokens drawn for the slots of `span`, whose rows of `logits` are `cond` and `uncond`."""
        raise NotImplementedError

    def _block(self, steps: int) -> Tensor:
        """Returns (N, steps): the next tokens of all slots, whose noise is already drawn."""
        raise NotImplementedError

    def _remove(self, gone: Sequence[Slot]) -> None:
        raise NotImplementedError

    # ---- joining and leaving -------------------------------------------------------------------------

    def _join(self, new: list[tuple[Utterance, Prefix]]) -> None:
        added: list[Slot] = []
        try:
            for utterance, _ in new:
                added.append(self.slots.add(utterance))
            logits = self._prompt(added, [prefix for _, prefix in new])
            self._first_tokens(added, logits)
        except BaseException:
            self._remove(added)
            raise

    def _first_tokens(self, added: list[Slot], logits: Tensor) -> None:
        slots, low, first = self.slots, added[0].index, added[0].cond
        slots.upload()
        span = slice(low, low + len(added))
        slots.draw_noise(added)
        slots.use_noise()
        rows = slots.cond[span] - first, slots.uncond[span] - first
        token = self._pick(logits, *rows, span, slots.filters())
        if self.config.is_gpt:  # Turbo's penalty forgets the start token after the first draw
            slots.seen[span] = False
            slots.seen[span].scatter_(1, slots.token[span, None], True)
        for slot, first_token in zip(added, token.tolist()):
            self._collect(slot, [first_token], None)

    def release(self, gone: Sequence[Slot]) -> None:
        if gone:
            self._remove(gone)
        if self._ahead is not None and not any(slot in self.live for slot in self._ahead.slots):
            self._ahead = None  # or it would hold the last utterances and their sound while nothing is spoken

    def clear(self) -> None:
        """Frees all slots."""
        self._ahead = None
        if self.slots is not None:
            self.slots.clear()

    # ---- the loop ------------------------------------------------------------------------------------

    def decode(self) -> None:
        """Takes a block, `poll_every` tokens for every slot that was live when it was begun, and finds which have
        ended. If the next block is begun before, the device has work while the host looks; what it draws for an
        utterance that has ended is dropped."""
        block, self._ahead = self._ahead or self._begin(), None
        if self.draws_ahead and self._goes_on(block):
            self._ahead = self._begin()
        for slot, drawn, before in zip(block.slots, block.drawn(), block.before):
            if slot in self.live and slot.utterance.stopped is None:
                self._collect(slot, drawn, before)

    def _begin(self) -> Block:
        slots, steps = self.slots, self.options.poll_every
        past = steps > 1 or self.draws_ahead  # whether tokens may be drawn past an utterance's end
        before = [slot.utterance.noise.state() if past and not slot.greedy else None for slot in slots.live]
        # one that ended with its first token has its slot until the end of the engine's step
        slots.draw_noise([slot for slot in slots.live if slot.utterance.stopped is None], steps)
        return Block(list(slots.live), before, fetch(self._block(steps)))

    def _goes_on(self, block: Block) -> bool:
        """Whether any utterance may go on after this block, as far as its limit tells."""
        steps = self.options.poll_every
        coming = ((slot.utterance, steps if slot in block.slots else 0) for slot in self.live)
        return any(len(u.tokens) + more < u.sampling.max_new_tokens for u, more in coming)

    def _collect(self, slot: Slot, drawn: list[int], before: Tensor | None) -> None:
        """Gives an utterance its tokens, and ends it where they say so."""
        utterance = slot.utterance
        utterance.tokens += drawn
        limit, text = utterance.sampling.max_new_tokens, len(utterance.text_ids)
        end = ending(utterance.tokens, utterance.searched, limit, text, self.options.runaway_guard)
        if end is None:
            utterance.searched = len(utterance.tokens)
            return
        count, utterance.stopped = end
        if before is not None:
            self._rewind(utterance, before, count)
        utterance.tokens[:] = [t for t in utterance.tokens[:count] if t != STOP_SPEECH]

    def _rewind(self, utterance: Utterance, before: Tensor, end: int) -> None:
        """Sets its generator to the state after `end` draws, from which the sound's noise continues."""
        if end == len(utterance.tokens) and self._ahead is None:
            return
        utterance.noise.restore(before)
        skipped = end - utterance.searched, self.config.speech_vocab
        scratch = torch.empty(skipped, device=self.device, dtype=torch.float32)
        utterance.noise.exponential(scratch)

    @property
    def _starts(self) -> int:
        """Number of start tokens after a text."""
        return 1 if self.config.is_gpt else 2
