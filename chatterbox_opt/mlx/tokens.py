"""Draws T3's tokens with MLX. All utterances share one cache, which grows with them."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import torch
from torch import Tensor

from ..engine.prefix import Prefix
from ..engine.request import Utterance
from ..engine.sampling import Filters
from ..engine.slots import Slot, Slots
from ..engine.speaking import Speaking
from ..options import EngineOptions
from .arrays import to_mlx, to_torch
from .cache import Prefill, RowCache
from .prefix import Prefixes
from .step import Rows, State, Steps
from .t3 import T3


class MlxTokenRunner(Speaking):
    """Slots stay in torch, on the host: a block reads their state and writes it back."""

    def __init__(self, t3: T3, options: EngineOptions, compiled: bool | None = None) -> None:
        """`compiled` None: only if there is a GPU."""
        super().__init__(t3.config, options, torch.device("cpu"))
        self.t3 = t3
        self.prefixes = Prefixes(t3, options.prefix_cache)
        self.steps = Steps(t3, mx.metal.is_available() if compiled is None else compiled)
        self.cache = RowCache(t3.config, t3.dtype)

    # ---- room ----------------------------------------------------------------------------------------

    def fits(self, utterance: Utterance) -> bool:
        """Always: the cache may grow while others are being spoken."""
        return True

    def reserve(self, slots: int, length: int) -> None:
        if self.slots is None:
            self.slots = Slots(slots, 2 * slots, self.config, self.device, self.options.poll_every)

    def warmup(self, batch: int = 1) -> None:
        """Allocates the slots; nothing else depends on the batch."""
        self.reserve(self.options.slots, 0)

    def clear(self) -> None:
        super().clear()
        self.cache.clear()

    # ---- joining and leaving -------------------------------------------------------------------------

    @torch.inference_mode()
    def prefill(self, new: Sequence[Utterance]) -> None:
        """One pass per utterance, so that results do not depend on what else joins, and nothing is padded."""
        self.reserve(self.options.slots, 0)
        for utterance in new:
            self._join([(utterance, self.prefixes.get(utterance.cond))])

    def _prompt(self, added: list[Slot], prefixes: list[Prefix]) -> mx.array:
        (slot,), (prefix,) = added, prefixes
        rows, kv = len(slot.rows), Prefill(prefix, self.config.head_dim**-0.5)
        x = self.t3.text_part(to_mlx(slot.utterance.text_ids.long()), rows)
        hidden = self.t3(x, mx.full((rows,), prefix.length, dtype=mx.int32), kv)
        logits = self.t3.logits(hidden[:, -1])
        slot.position = prefix.length + x.shape[1]
        self.cache.append(kv.k, kv.v)
        return logits

    def _pick(self, logits: mx.array, cond: Tensor, uncond: Tensor, span: slice, filters: Filters) -> Tensor:
        slots = self.slots
        rows = self._rows(span, to_mlx(cond), to_mlx(uncond))
        noise, seen = to_mlx(slots.noise[span]), to_mlx(slots.seen[span])
        drawn, token, seen = self.steps.pick(logits, rows, seen, noise, filters)
        slots.token[span], slots.seen[span] = to_torch(token), to_torch(seen)
        return to_torch(drawn)

    def _remove(self, gone: Sequence[Slot]) -> None:
        kept = [row for slot in self.live if slot not in gone for row in slot.rows]
        self.slots.remove(gone, None)  # renumbers the rows and keeps their order
        self.cache.keep(kept)

    # ---- the loop ------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _block(self, steps: int) -> Tensor:
        """Builds the graph of a step while the previous step is computed."""
        slots, n, r = self.slots, len(self.live), self.slots.rows
        self.cache.grow(max(slot.position for slot in self.live) + steps)
        span, filters = slice(0, n), slots.filters()
        rows = self._rows(span, to_mlx(slots.cond[span]), to_mlx(slots.uncond[span]))
        noise = to_mlx(slots.ahead[:steps, span])
        token, step, position, seen = map(to_mlx, (slots.token[span], slots.step[span], slots.position[:r],
                                                   slots.seen[span]))
        drawn: list[mx.array] = []
        for k in range(steps):
            # MLX writes the cache in place only if nothing else references its arrays and no pending operation reads
            # them; otherwise it copies them.
            tokens, (token, step, position, seen, self.cache.k, self.cache.v) = self.steps.run(
                filters, rows, State(token, step, position, seen, self.cache.k, self.cache.v), noise[k]
            )
            mx.eval(drawn[-1:])
            mx.async_eval(tokens, *self.cache.k, *self.cache.v)
            drawn.append(tokens)
        mx.eval(drawn, token, seen, self.cache.k, self.cache.v)
        slots.token[span], slots.seen[span] = to_torch(token), to_torch(seen)
        slots.step[span] += steps
        slots.position[:r] += steps
        for slot in self.live:
            slot.position += steps
        return torch.stack([to_torch(tokens) for tokens in drawn], 1)

    def _rows(self, span: slice, cond: mx.array, uncond: mx.array) -> Rows:
        slots = self.slots
        params = [to_mlx(tensor) for tensor in vars(slots.params_of(span)).values()]
        return Rows(to_mlx(slots.slot_of_row[: slots.rows]), cond, uncond, params)
