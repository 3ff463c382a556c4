"""The running batch: one slot per utterance being spoken, one or two rows per slot, packed from the front."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from ..config import START_SPEECH, T3Config
from .cache import StaticKVCache
from .prefix import Prefix
from .request import Utterance
from .sampling import Filters, RowParams
from .transfers import upload


@dataclass(eq=False)
class Slot:
    """The host's record of an utterance being spoken."""

    utterance: Utterance
    index: int  # in the per-slot tensors
    cond: int  # its row in the batch
    uncond: int  # its unconditioned row; `cond` again without guidance
    position: int = 0  # in the cache, of the next token
    kv: Tensor | None = None  # (layers, 2, 1 | 2, heads, length, head_dim), if the slots do not share one cache
    prompt: Prefix | None = None  # of its voice, if it lies outside of `kv`

    @property
    def greedy(self) -> bool:
        return self.utterance.sampling.temperature == 0

    @property
    def rows(self) -> list[int]:
        return [self.cond] if self.cond == self.uncond else [self.cond, self.uncond]


class Slots:
    """The device's record: per-slot (N, ...) and per-row (R,) tensors at fixed addresses, as graphs need them."""

    def __init__(self, capacity: int, rows: int, config: T3Config, device: torch.device, block: int = 1) -> None:
        """`block`: steps whose noise is drawn together."""

        def zeros(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.capacity, self.config, self.device = capacity, config, device
        self.live: list[Slot] = []
        self.rows = 0  # in use
        self.token, self.step = zeros(capacity), zeros(capacity)
        self.places = zeros(2 * rows + 2 * capacity)  # in one tensor, to be uploaded at once
        self.slot_of_row, self.position, self.cond, self.uncond = self.places.split([rows, rows, capacity, capacity])
        self.seen = zeros(capacity, config.speech_vocab, dtype=torch.bool)
        self.noise = torch.ones(capacity, config.speech_vocab, device=device, dtype=torch.float32)
        self.params = RowParams(
            *(zeros(capacity, 1, dtype=torch.float32) for _ in range(4)), top_k=zeros(capacity, 1),
            penalty=torch.ones(capacity, 1, device=device, dtype=torch.float32),
        )
        self.ahead = self.noise[None].repeat(block, 1, 1) if block > 1 else self.noise[None]

    def clear(self) -> None:
        self.live, self.rows = [], 0
        for tensor in (self.token, self.step, self.places):
            tensor.zero_()
        self.seen.zero_()

    def add(self, utterance: Utterance) -> Slot:
        i, sampling = len(self.live), utterance.sampling
        slot = Slot(utterance, i, self.rows, self.rows + utterance.rows - 1)
        self.step[i] = 0
        self.seen[i] = False
        self.seen[i, START_SPEECH] = True
        self.params.cfg[i] = float(sampling.cfg_weight)
        self.params.temperature[i] = float(sampling.temperature)
        self.params.min_p[i] = float(sampling.min_p)
        self.params.top_p[i] = float(sampling.top_p)
        self.params.top_k[i] = int(sampling.top_k)
        self.params.penalty[i] = float(sampling.repetition_penalty)
        self.live.append(slot)  # last: a number that does not fit its tensor must not leave half a slot
        self.rows += utterance.rows
        return slot

    def upload(self) -> None:
        """Copies the host's rows and positions to the device. A captured batch may be wider than the slots in use; its
        spare rows repeat slot 0 at position 0, which is inside all tables."""
        owner, position = [0] * len(self.position), [0] * len(self.position)
        for slot in self.live:
            for row in slot.rows:
                owner[row], position[row] = slot.index, slot.position
        spare = [0] * (self.capacity - len(self.live))
        cond, uncond = [slot.cond for slot in self.live] + spare, [slot.uncond for slot in self.live] + spare
        self.places.copy_(upload([*owner, *position, *cond, *uncond], self.device))
        self.step[len(self.live) :] = 0

    def params_of(self, span: slice) -> RowParams:
        return RowParams(*(tensor[span] for tensor in vars(self.params).values()))

    def filters(self) -> Filters:
        """Returns the filters that at least one of the utterances needs."""
        asked = [slot.utterance.sampling for slot in self.live]
        on_host = self.device.type == "cpu"
        return Filters(
            min_p=not self.config.is_gpt and any(s.min_p > 0 for s in asked),
            top_p=any(s.top_p < 1 for s in asked),
            top_k=any(s.top_k > 0 for s in asked),
            most=max(s.top_k for s in asked) if on_host and all(s.top_k > 0 for s in asked) else None,
        )

    def draw_noise(self, slots: Sequence[Slot], steps: int = 1) -> None:
        """Draws the noise of so many steps, for use_noise() to take."""
        for slot in slots:
            if not slot.greedy:
                slot.utterance.noise.exponential(self.ahead[:steps, slot.index])

    def use_noise(self, step: int = 0) -> None:
        if len(self.ahead) > 1:
            self.noise.copy_(self.ahead[step])

    def remove(self, gone: Sequence[Slot], cache: StaticKVCache | None) -> None:
        """Removes slots and closes the gaps, so that no step computes an unused row. Rows of a shared cache move; if
        each slot has its own cache, only row numbers change."""
        self.live = [slot for slot in self.live if slot not in gone]
        self.rows = sum(len(slot.rows) for slot in self.live)
        if cache is None:
            self.arrange()
        else:
            self._fill_holes(cache)
        index = upload([slot.index for slot in self.live], self.device)
        for tensor in (self.token, self.step, self.seen, *vars(self.params).values()):
            tensor[: len(self.live)] = tensor[index]
        for i, slot in enumerate(self.live):
            slot.index = i
        self.upload()

    def arrange(self) -> None:
        """Numbers the rows anew where each slot has its own cache: those that share a prompt lie side by side."""
        by_prompt: dict[int, list[Slot]] = defaultdict(list)
        for slot in self.live:
            by_prompt[id(slot.prompt)].append(slot)
        row = 0
        for slot in chain.from_iterable(sorted(by_prompt.values(), key=len, reverse=True)):
            width = len(slot.rows)
            slot.cond, slot.uncond, row = row, row + width - 1, row + width

    def _fill_holes(self, cache: StaticKVCache) -> None:
        rows, used = self.rows, {row for slot in self.live for row in slot.rows}
        holes = [row for row in range(rows) if row not in used]
        for slot in self.live:
            guided = slot.cond != slot.uncond
            if slot.cond >= rows:
                cache.move(slot.cond, target := holes.pop(), slot.position)
                slot.cond = target
            if not guided:
                slot.uncond = slot.cond
            elif slot.uncond >= rows:
                cache.move(slot.uncond, target := holes.pop(), slot.position)
                slot.uncond = target
