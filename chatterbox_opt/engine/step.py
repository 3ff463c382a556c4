"""One token for every utterance that is being spoken: T3, guidance, filters and the draw, as one graph or operation by
operation."""

from __future__ import annotations

import logging
from functools import partial
from operator import attrgetter, itemgetter

import torch
from torch import Tensor

from ..models.llama import KV
from ..models.t3 import T3
from ..options import KERNELS, EngineOptions
from .agreement import ripples
from .cache import Decode, StaticKVCache, empty_kv
from .endings import BROKEN
from .graphs import Captured, bucket, on_trial
from .kernels import sampling as sampling_kernel
from .kernels.language import available
from .kernels.step import StepKernels
from .operations import t3_operations
from .own_rows import DecodeEach, Own, Run, may_be_shared
from .prefix import Prefix
from .sampling import Filters, guide, next_token, next_token_turbo
from .slots import Slots
from .traced import Traced

logger = logging.getLogger(__name__)

LIVE = (256, 512, 1024, 1536, 2560, 4608)  # captured lengths of the part of the cache that attention reads
MOST_STEPS = 4000  # that max_new_tokens can be


class DecodeStep:
    """`slots` and, where rows are shared, `cache` are what it reads and writes."""

    def __init__(self, t3: T3, options: EngineOptions) -> None:
        self.t3, self.options, self.config = t3, options, t3.config
        self.device = t3.speech_emb.weight.device
        mode = options.compile if options.records("step") else None
        self.traced = Traced("T3's step", t3, on=mode == "trace")
        trial = on_trial("step", options, str(t3.speech_emb.weight.dtype).removeprefix("torch."))
        # of (tokens, logits): tokens alone may be the same by luck
        graphs = None if mode == "trace" else mode
        self.captured = Captured(graphs, self.device, trial=trial, kept=itemgetter(0))
        self.kernels = self._choose_kernels()
        self.slots: Slots | None = None
        self.cache: StaticKVCache | None = None
        # What is drawn past a limit before anybody looks has no position of its own in a small table.
        most = MOST_STEPS + 2 * options.poll_every + 2
        self.short_table = not self.config.is_gpt and self.config.speech_positions < most
        self._span: Tensor | None = None

    def _choose_kernels(self) -> StepKernels:
        usable = self.device.type == "cuda" and available()
        usable = usable and self.options.compile != "reduce-overhead"  # that makes its own
        names = [name for name in KERNELS if usable and self.options.wants(name)]
        plain = t3_operations(self.t3, self.options)
        return StepKernels(self.t3, names, self.options.attention == "flash", plain=plain)

    def use(self, slots: Slots, cache: StaticKVCache | None) -> None:
        """From now on in this memory, after leave() if there was another."""
        self.slots, self.cache = slots, cache
        self._span = torch.arange(cache.length, device=self.device) if cache is not None else None

    def leave(self) -> None:
        """Lets go of its memory, and of what was captured in it."""
        self.captured.forget()
        self.slots = self.cache = self._span = None

    def run(self) -> Tensor:
        """(N,) tokens, overwritten by the next step; BROKEN where logits are not finite."""
        slots = self.slots
        n, rows = len(slots.live), slots.rows
        if self.cache is None:
            in_order = sorted(slots.live, key=attrgetter("cond"))
            each = DecodeEach.of([Own(slot.kv, slot.position, slot.prompt) for slot in in_order])
            return self.step(n, rows, slots.filters(), each)[0]
        most = max(slot.position for slot in slots.live) + 1
        if not self.captured.on:
            self.cache.clear(most)
            return self.step(n, rows, slots.filters(), live=most)[0]
        self.cache.clear(self.cache.length)
        asked = slots.filters()
        key = (bucket(n), bucket(n) * (2 if rows > n else 1), live_bucket(most, self.cache.length),
               asked.top_p or asked.top_k)
        self.capture(key)
        return self.captured.run(key, partial(self._captured_step, *key))

    # ---- captured ----------------------------------------------------------------------------------

    def _captured_step(self, n: int, rows: int, live: int, sorting: bool) -> tuple[Tensor, Tensor]:
        """Two sets of filters serve all requests: a filter that a row does not ask for leaves it as it is."""
        return self.step(n, rows, Filters(not self.config.is_gpt, sorting, sorting), live=live)

    def capture(self, key: tuple[int, int, int, bool]) -> None:
        """Unless it is already. Utterances may be in the middle of being spoken: they go on from where they are."""
        if self.captured.ready(key):
            return
        slots, rows = self.slots, key[1]

        def spoil() -> None:
            lines = torch.arange(rows, device=self.device), slots.position[:rows]
            self.cache.kv[:, :, lines[0], :, lines[1]] = 0

        moving = (slots.token, slots.step, slots.position, slots.seen)
        self.captured.prepare(key, partial(self._captured_step, *key), moving, spoil)

    def warmup(self, batch: int) -> None:
        """Captures what up to `batch` utterances come to use, the largest first. On a CPU it traces these."""
        if self.traced.on:
            for n in range(1, batch + 1):
                self._trace(n)
        if not self.captured.on:
            return
        self.cache.clear(self.cache.length)
        for key in self.planned(batch):
            if self.captured.trial is not None:
                self._pretend(*key)
            self.capture(key)
        self.slots.clear()

    def _trace(self, n: int) -> None:
        """Traces the step of n utterances, all of them guided where that is usual."""
        width, dtype = 1 if self.config.is_gpt else 2, self.t3.speech_emb.weight.dtype
        caches = [empty_kv(self.config, width, 2, self.device, dtype).zero_() for _ in range(n)]
        voice = empty_kv(self.config, 1, self.config.prefix_len, self.device, dtype)[:, :, 0].zero_()
        prompt = Prefix(*voice.unbind(1))
        shared, at = (prompt, prompt.length) if may_be_shared(prompt) else (None, 1)
        each = DecodeEach.of([Own(kv, at, shared) for kv in caches])
        x, positions = torch.zeros(n * width, 1, self.config.dim, dtype=dtype), torch.full((n * width, 1), at)
        self.traced.prepare(each.runs, partial(self.logits_each, each.runs), x, positions, each.layers)

    def planned(self, batch: int) -> list[tuple[int, int, int, bool]]:
        """Returns the keys that a warm-up for up to `batch` utterances captures, the largest first."""
        width, lives = 1 if self.config.is_gpt else 2, live_buckets(self.cache.length)
        sizes = [1 << i for i in range(bucket(batch).bit_length())]
        return [
            (n, width * n, live, sorting) for n in reversed(sizes) for live in reversed(lives)
            for sorting in (False, True)
        ]  # fmt: skip

    def _pretend(self, n: int, rows: int, live: int, sorting: bool) -> None:
        """As if utterances had come to the end of `live`: what a trial is to see."""
        slots, width, device = self.slots, rows // n, self.device
        each, row = torch.arange(n, device=device), torch.arange(rows, device=device)
        slots.token[:n], slots.step[:n] = 1 + each % 6000, 1 + each
        slots.cond[:n], slots.uncond[:n] = width * each, width * each + width - 1
        slots.slot_of_row[:rows], slots.position[:rows] = row // width, live - 2 - row % (live // 2)
        slots.noise.copy_(1.1 + ripples(*slots.noise.shape, device=device))
        for name, value in dict(cfg=0.5, temperature=0.8, min_p=0.05, top_p=0.95, top_k=900, penalty=1.2).items():
            getattr(slots.params, name).fill_(value)
        pattern = ripples(*self.cache.kv.shape[3:], device=device).to(self.cache.kv.dtype)
        for line in range(rows):
            self.cache.kv[:, :, line] = pattern.roll(line, 1)

    # ---- what is captured --------------------------------------------------------------------------

    def step(
        self, n: int, rows: int, filters: Filters, each: DecodeEach | None = None, live: int = 0
    ) -> tuple[Tensor, Tensor]:
        """(n,) tokens and (rows, V) logits. `each` attends per utterance; without it attention reads `live` positions
        of the shared cache."""
        slots = self.slots
        x = self.t3.embed_speech(slots.token[:n], slots.step[:n])  # (n, D)
        x = x[slots.slot_of_row[:rows]].unsqueeze(1)  # (rows, 1, D)
        positions = slots.position[:rows]
        if each is None:
            logits = self.logits(x, positions[:, None], self._shared(positions, live))
        else:
            by_runs = partial(self.logits_each, each.runs)
            logits = self.traced(each.runs, by_runs, x, positions[:, None], each.layers)
        cond, uncond = slots.cond[:n], slots.uncond[:n]
        token = self.pick(logits, cond, uncond, slice(0, n), filters)
        slots.step[:n] += 1
        if self.short_table:
            slots.step[:n].clamp_(max=self.config.speech_positions - 2)
        slots.position[:rows] += 1
        return token, logits

    def logits(self, x: Tensor, positions: Tensor, kv: KV) -> Tensor:
        """x (rows, 1, D) at positions (rows, 1) -> (rows, V)."""
        hidden = self.t3(x, positions, kv, self.kernels.operations)
        return self.t3.logits(hidden[:, 0])

    def logits_each(
        self, runs: tuple[Run, ...], x: Tensor, positions: Tensor, layers: list[tuple[Tensor, ...]]
    ) -> Tensor:
        return self.logits(x, positions, DecodeEach(runs, self.config.head_dim, layers))

    def _shared(self, positions: Tensor, live: int) -> Decode:
        flash = self.options.attention == "flash"
        kernel = self.kernels.attention(len(positions))
        mask = None if kernel else (self._span[:live] <= positions[:, None])[:, None, None]
        return Decode(self.cache, positions, live, mask, flash, kernel)

    def pick(self, logits: Tensor, cond: Tensor, uncond: Tensor, span: slice, filters: Filters) -> Tensor:
        """Draws from logits (rows, V) for the slots of `span`, whose rows are `cond` and `uncond`: (N,) tokens."""
        slots = self.slots
        params, seen, noise = slots.params_of(span), slots.seen[span], slots.noise[span]
        finite = logits.amax(-1).isfinite()
        finite = finite[cond] & finite[uncond]
        if self.kernels.samples(filters):
            token = sampling_kernel.sample(logits, cond, uncond, seen, noise, params, filters, self.config.is_gpt)
        elif self.config.is_gpt:
            token = next_token_turbo(logits[cond], seen, noise, params, filters)
        else:  # rows without guidance name their own row twice: the difference is 0
            token = next_token(guide(logits[cond], logits[uncond], params.cfg), seen, noise, params, filters)
        seen.scatter_(1, token[:, None], True)
        slots.token[span] = token
        return torch.where(finite, token, BROKEN)


def live_buckets(length: int) -> list[int]:
    return sorted({min(b, length) for b in LIVE} | {length})


def live_bucket(need: int, length: int) -> int:
    return next(b for b in live_buckets(length) if b >= need)
