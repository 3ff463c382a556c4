"""T3's tokens by torch: rows in one cache where steps are captured or run on a CUDA device, elsewhere each utterance's
in its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from ..models.t3 import T3
from ..options import EngineOptions
from .cache import Prefill, StaticKVCache, empty_kv, paste
from .graphs import bucket, recording
from .linears import prepare_linears
from .own_rows import PrefillAfter, may_be_shared
from .prefill_graphs import ALONE, PrefillGraphs
from .prefix import Prefix, PrefixCache
from .quantize import packs_float16
from .request import Utterance, positions
from .sampling import Filters
from .slots import Slot, Slots
from .speaking import Speaking
from .step import LIVE, DecodeStep
from .transfers import upload

LENGTH_STEP = 256  # cache lengths are multiples of this
MEMORY_SHARE = 3  # the cache takes at most a third of the device's free memory, unless one utterance needs more


class TokenRunner(Speaking):
    def __init__(self, t3: T3, options: EngineOptions) -> None:
        super().__init__(t3.config, options, t3.speech_emb.weight.device)
        self.t3 = t3
        self.dtype = t3.speech_emb.weight.dtype
        self.draws_ahead = self.device.type == "cuda"
        self.same_on_any_cores = self.dtype == torch.float32  # sums in another order are not rounded to 16 bits
        half = options.dtype == "float16" and self.dtype == torch.float32 and packs_float16(self.device)
        prepare_linears(t3, options.quantize, options.few_rows, half)
        self.step = DecodeStep(t3, options)
        self.prefixes = PrefixCache(t3, options.prefix_cache, self.step.kernels.operations)
        self.prompts = PrefillGraphs(t3, options, self.step.kernels.operations)
        self.cache: StaticKVCache | None = None
        self._asked = 0  # slots that memory was wanted for: a device may have too little

    @property
    def shared(self) -> bool:
        """Whether the rows of all utterances lie in one cache."""
        return self.step.captured.on or self.device.type == "cuda"

    # ---- memory ----------------------------------------------------------------------------------------

    def fits(self, utterance: Utterance) -> bool:
        """Whether it can join the running batch. A shared cache grows only while no utterance is being spoken."""
        return self.cache is None or positions(utterance, self.config, self.options) <= self.cache.length

    def reserve(self, slots: int, length: int) -> None:
        """Allocates memory for so many utterances of up to `length` positions, or for as many as fit on the device.
        Only while none is being spoken."""
        if not self.shared:
            if self.slots is None:
                self._use(Slots(slots, 2 * slots, self.config, self.device, self.options.poll_every), None)
            return
        if self.cache is not None and self._asked >= slots and self.cache.length >= length:
            return
        length = max(length, self._ordinary, self.cache.length if self.cache else 0)
        length = -(-length // LENGTH_STEP) * LENGTH_STEP
        self._asked = max(slots, self._asked)
        if self.cache is not None:  # the old one goes before the new one comes
            self.slots = self.cache = None
            self.step.leave()
        slots = self._affordable(bucket(self._asked), length)
        rows = slots * (1 if self.config.is_gpt else 2)
        cache = StaticKVCache(empty_kv(self.config, rows, length, self.device, self.dtype))
        self.step.kernels.fit(rows)
        self._use(Slots(slots, rows, self.config, self.device, self.options.poll_every), cache)

    @property
    def _ordinary(self) -> int:
        """Positions of a cache for utterances of ordinary length: a later, longer one would need a new cache."""
        return min(LIVE[3], self.options.cache_len)

    def _affordable(self, slots: int, length: int) -> int:
        if self.device.type != "cuda":
            return slots
        rows, item = 1 if self.config.is_gpt else 2, self.dtype.itemsize
        per_slot = rows * length * 2 * self.config.layers * self.config.dim * item
        with recording:  # no graph is being captured, which freeing memory would break
            torch.cuda.empty_cache()  # what torch keeps for later does not count as free
        free, _ = torch.cuda.mem_get_info(self.device)
        while slots > 1 and slots * per_slot > free // MEMORY_SHARE:
            slots //= 2
        return slots

    def _use(self, slots: Slots, cache: StaticKVCache | None) -> None:
        self.slots, self.cache = slots, cache
        self.step.use(slots, cache)

    @torch.inference_mode()
    def warmup(self, batch: int = 1) -> None:
        """Allocates and captures for `batch` utterances of ordinary length, before the first request."""
        self.reserve(self.options.slots, self._ordinary)
        self.step.warmup(min(batch, self.slots.capacity))
        self.prompts.warmup(batch)

    # ---- joining -------------------------------------------------------------------------------------

    def prefill(self, new: Sequence[Utterance]) -> None:
        """Gives each a slot, and draws its first token. With a shared cache, many voices of one prefix length share a
        pass: all of Llama's, and GPT-2's from recordings of equal length. Otherwise each has a pass of its own, so that
        its result does not depend on the others and nothing is padded."""
        if not self.live:
            self.reserve(self.options.slots, max(positions(u, self.config, self.options) for u in new))
        if not self.shared:
            for utterance in new:
                self._join([(utterance, self.prefixes.get(utterance.cond))])
            self.slots.arrange()
            self.slots.upload()
            return
        by_length: dict[int, list[tuple[Utterance, Prefix]]] = defaultdict(list)
        for utterance in new:
            prefix = self.prefixes.get(utterance.cond)
            by_length[prefix.length].append((utterance, prefix))
        for group in by_length.values():
            one_by_one = self.prompts.on and len(group) <= ALONE
            for part in ([one] for one in group) if one_by_one else [group]:
                self._join(part)

    def _prompt(self, added: list[Slot], prefixes: list[Prefix]) -> Tensor:
        """Writes voice and text of new utterances to their rows, right-padded; returns (rows, V) logits of their first
        tokens."""
        prompt, first, starts = prefixes[0], added[0].cond, self._starts
        size = prompt.length
        texts = [slot.utterance.text_ids for slot in added for _ in slot.rows]
        longest = max(len(t) for t in texts)
        padded = [i for t in texts for i in (*t.tolist(), *[0] * (longest - len(t)))]
        second = [k for slot in added for k in range(len(slot.rows))]
        last = [len(t) + starts - 1 for t in texts]
        sizes = [len(padded), len(second), len(last)]
        ids, uncond, ends = upload([*padded, *second, *last], self.device).split(sizes)
        # The start tokens directly follow each text, so they are written into the padding, not behind it.
        x = self._text_rows(ids.view(len(texts), longest), [len(t) for t in texts], uncond == 1)
        if not self.shared and may_be_shared(prompt):
            added[0].prompt = prompt
        kv = self._rows_of(added, size + x.shape[1])
        for slot in added:
            slot.position = size + len(slot.utterance.text_ids) + starts
        if len(added) == 1 and (logits := self.prompts.run(x, prompt, ends, kv)) is not None:
            return logits
        span = torch.arange(size, size + x.shape[1], device=self.device)
        if added[0].prompt is not None:
            attention = PrefillAfter(kv, prompt)
        else:
            attention = Prefill(kv, size)
            for slot, prefix in zip(added, prefixes):
                for row in slot.rows:
                    paste(kv, row - first, prefix.k, prefix.v)
        hidden = self.t3(x, span[None], attention, self.step.kernels.operations)
        return self.t3.logits(hidden[torch.arange(len(texts), device=self.device), ends])

    def _rows_of(self, added: list[Slot], upto: int) -> Tensor:
        """Returns the rows of new slots, (layers, 2, rows, heads, length, head_dim)."""
        if self.cache is not None:
            self.cache.clear(upto)
            return self.cache.kv.narrow(2, added[0].cond, added[-1].uncond + 1 - added[0].cond)
        (slot,) = added
        length = positions(slot.utterance, self.config, self.options)
        length -= 0 if slot.prompt is None else slot.prompt.length
        slot.kv = empty_kv(self.config, len(slot.rows), length, self.device, self.dtype)
        return slot.kv

    def _text_rows(self, padded: Tensor, lengths: list[int], uncond: Tensor) -> Tensor:
        """Returns (B, T + starts, D): each text, directly followed by its start tokens, then masked padding."""
        x = self.t3.text_part(padded, uncond)
        starts = x[:, padded.shape[1] :].clone()
        for i, n in enumerate(lengths):
            x[i, n : n + self._starts] = starts[i]
        return x

    def _pick(self, logits: Tensor, cond: Tensor, uncond: Tensor, span: slice, filters: Filters) -> Tensor:
        return self.step.pick(logits, cond, uncond, span, filters)

    # ---- the loop ------------------------------------------------------------------------------------

    def _block(self, steps: int) -> Tensor:
        """No token is fetched to the host before all are drawn."""
        slots, drawn = self.slots, []
        for k in range(steps):
            slots.use_noise(k)
            drawn.append(self.step.run().clone())
            for slot in slots.live:
                slot.position += 1
        return torch.stack(drawn, 1)

    def clear(self) -> None:
        """Of what was being spoken nobody has looked at the newest positions: all are zeroed before they are used."""
        super().clear()
        if self.cache is not None:
            self.cache.clean = 0

    def _remove(self, gone: Sequence[Slot]) -> None:
        """Of an utterance that is not broken everything up to its end is finite. What was drawn past it, in its last
        block and the one that was begun meanwhile, nobody has looked at."""
        for slot in gone if self.cache is not None else ():
            if slot.utterance.stopped == "broken":
                self.cache.wipe(slot.rows)
            else:
                self.cache.wipe(slot.rows, max(0, slot.position - 2 * self.options.poll_every), slot.position)
        self.slots.remove(gone, self.cache)
