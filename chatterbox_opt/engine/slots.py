"""The utterances being spoken: one slot each, one or two rows of a step per slot, packed from the front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import START_SPEECH, T3Config
from .cache import StaticKVCache
from .request import Utterance
from .sampling import Filters, RowParams


@dataclass(eq=False)
class Slot:
    """The host's view of an utterance that is being spoken."""

    utterance: Utterance
    index: int  # row of the per-slot tensors
    cond: int  # row of the step
    uncond: int  # its other row, or `cond` again without guidance
    position: int = 0  # where the next token will be written
    kv: Tensor | None = None  # (layers, 2, 1 | 2, heads, length, head_dim) of its own, where no cache is shared
    before: Tensor | None = None  # the generator's state ahead of the block that is being drawn

    @property
    def greedy(self) -> bool:
        return self.utterance.sampling.temperature == 0

    @property
    def rows(self) -> list[int]:
        return [self.cond] if self.cond == self.uncond else [self.cond, self.uncond]


class Slots:
    """The device's view: per-slot (N, ...) and per-row (R,) tensors that never move."""

    def __init__(self, capacity: int, rows: int, config: T3Config, device: torch.device, block: int = 1) -> None:
        """`block`: steps whose noise is drawn at once."""

        def zeros(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.capacity, self.config, self.device = capacity, config, device
        self.live: list[Slot] = []
        self.rows = 0  # in use
        self.token, self.step = zeros(capacity), zeros(capacity)
        self.cond, self.uncond = zeros(capacity), zeros(capacity)
        self.seen = zeros(capacity, config.speech_vocab, dtype=torch.bool)
        self.noise = torch.ones(capacity, config.speech_vocab, device=device)
        self.params = RowParams(
            *(zeros(capacity, 1, dtype=torch.float32) for _ in range(4)), top_k=zeros(capacity, 1),
            penalty=torch.ones(capacity, 1, device=device),
        )
        self.ahead = torch.ones(block, capacity, config.speech_vocab, device=device) if block > 1 else self.noise[None]
        self.slot_of_row, self.position = zeros(rows), zeros(rows)

    def clear(self) -> None:
        self.live, self.rows = [], 0
        for tensor in (self.token, self.step, self.cond, self.uncond, self.slot_of_row, self.position):
            tensor.zero_()
        self.seen.zero_()

    def add(self, utterance: Utterance) -> Slot:
        i, sampling = len(self.live), utterance.sampling
        slot = Slot(utterance, i, self.rows, self.rows + utterance.rows - 1)
        self.live.append(slot)
        self.rows += utterance.rows
        self.step[i] = 0
        self.seen[i] = False
        self.seen[i, START_SPEECH] = True
        self.params.cfg[i] = float(sampling.cfg_weight)
        self.params.temperature[i] = float(sampling.temperature)
        self.params.min_p[i] = float(sampling.min_p)
        self.params.top_p[i] = float(sampling.top_p)
        self.params.top_k[i] = int(sampling.top_k)
        self.params.penalty[i] = float(sampling.repetition_penalty)
        return slot

    def upload(self) -> None:
        """The host's rows and positions -> the device. A captured batch that is wider than the slots in use computes
        what lies behind them too: it is slot 0 again, far from the ends of all tables."""
        owner, position = [0] * len(self.position), [0] * len(self.position)
        for slot in self.live:
            for row in slot.rows:
                owner[row], position[row] = slot.index, slot.position
        spare = [(0, 0)] * (self.capacity - len(self.live))
        rows = torch.tensor([(slot.cond, slot.uncond) for slot in self.live] + spare)
        self.slot_of_row.copy_(torch.tensor(owner))
        self.position.copy_(torch.tensor(position))
        self.cond.copy_(rows[:, 0])
        self.uncond.copy_(rows[:, 1])
        self.step[len(self.live) :] = 0

    def params_of(self, span: slice) -> RowParams:
        return RowParams(*(tensor[span] for tensor in vars(self.params).values()))

    def filters(self) -> Filters:
        """What at least one of the utterances asks for."""
        asked = [slot.utterance.sampling for slot in self.live]
        return Filters(
            min_p=not self.config.is_gpt and any(s.min_p > 0 for s in asked),
            top_p=any(s.top_p < 1 for s in asked),
            top_k=any(s.top_k > 0 for s in asked),
        )

    def draw_noise(self, slots: Sequence[Slot], steps: int = 1) -> None:
        """For so many steps, to be taken by use_noise()."""
        for slot in slots:
            if not slot.greedy:
                slot.utterance.noise.exponential(self.ahead[:steps, slot.index])

    def use_noise(self, step: int = 0) -> None:
        if len(self.ahead) > 1:
            self.noise.copy_(self.ahead[step])

    def remove(self, gone: Sequence[Slot], cache: StaticKVCache | None) -> None:
        """Close the gaps that they leave, so that no step computes a row nobody hears. Rows of a shared cache move;
        where each slot has rows of its own, only their numbers change."""
        kept = [slot for slot in self.live if slot not in gone]
        rows = sum(len(slot.rows) for slot in kept)
        if cache is None:
            self._renumber(kept)
        else:
            self._fill_holes(kept, rows, cache)
        index = torch.tensor([slot.index for slot in kept], dtype=torch.long, device=self.device)
        for tensor in (self.token, self.step, self.seen, *vars(self.params).values()):
            tensor[: len(kept)] = tensor[index]
        for i, slot in enumerate(kept):
            slot.index = i
        self.live, self.rows = kept, rows
        self.upload()

    @staticmethod
    def _renumber(kept: list[Slot]) -> None:
        row = 0
        for slot in kept:
            width = len(slot.rows)
            slot.cond, slot.uncond, row = row, row + width - 1, row + width

    @staticmethod
    def _fill_holes(kept: list[Slot], rows: int, cache: StaticKVCache) -> None:
        used = {row for slot in kept for row in slot.rows}
        holes = [row for row in range(rows) if row not in used]
        for slot in kept:
            guided = slot.cond != slot.uncond
            if slot.cond >= rows:
                cache.move(slot.cond, target := holes.pop(), slot.position)
                slot.cond = target
            if not guided:
                slot.uncond = slot.cond
            elif slot.uncond >= rows:
                cache.move(slot.uncond, target := holes.pop(), slot.position)
                slot.uncond = target
