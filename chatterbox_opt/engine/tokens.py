"""Text tokens -> speech tokens, for one and for many, over the rows of one static cache."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..config import STOP_SPEECH
from ..models.t3 import T3
from ..options import KERNELS, EngineOptions, SamplingOptions
from .cache import Decode, DecodeLevel, Prefill, StaticKVCache
from .graphs import Captured, bucket
from .guard import ran_away
from .kernels import sampling as sampling_kernel
from .kernels.step import StepKernels, available
from .lanes import Lane, Lanes
from .noise import RequestNoise
from .prefix import Prefix, PrefixCache
from .quantize import packs_float16, prepare_linears
from .sampling import Filters, guide, next_token, next_token_turbo

LIVE = (256, 512, 1024, 1536, 2560, 4608)  # captured lengths of the part of the cache that attention reads
STEP = 256  # cache lengths are multiples of this
MOST_STEPS = 4000  # that max_new_tokens can be
WAIT = 0.1  # s between two looks at `cancel` while another thread speaks


@dataclass(frozen=True)
class TokenRequest:
    text_ids: Tensor  # (T,) long, with the start and end ids of Llama's families
    cond: Any  # speaker_emb (1, 256), cond_prompt_speech_tokens (1, n), emotion_adv (1, 1, 1)
    sampling: SamplingOptions
    noise: RequestNoise

    @property
    def rows(self) -> int:
        return 2 if self.sampling.cfg_weight > 0 else 1


@dataclass(frozen=True)
class TokenResult:
    tokens: Tensor  # (n,) long on the model's device, without the stop token
    stopped: str  # "eos" | "limit" | "guard" | "cancelled"


class TokenRunner:
    def __init__(self, t3: T3, options: EngineOptions) -> None:
        self.t3, self.options, self.config = t3, options, t3.config
        self.device, self.dtype = t3.speech_emb.weight.device, t3.speech_emb.weight.dtype
        half = options.dtype == "float16" and self.dtype == torch.float32 and packs_float16(self.device)
        prepare_linears(t3, options.quantize, options.few_rows, half)
        self.prefixes = PrefixCache(t3, options.prefix_cache)
        self.captured = Captured(options.compile, self.device)
        self.kernels = self._choose_kernels()
        self.cache: StaticKVCache | None = None
        self.lanes: Lanes | None = None
        # What is drawn past a limit before anybody looks has no position of its own in a small table.
        self.short_table = not self.config.is_gpt and self.config.speech_positions < MOST_STEPS + options.poll_every + 2
        self.lock = threading.Lock()  # one cache: calls from several threads take turns
        self.owner: int | None = None  # the thread whose turn it is

    def _choose_kernels(self) -> StepKernels:
        usable = self.device.type == "cuda" and available()
        usable = usable and self.options.compile != "reduce-overhead"  # that makes its own
        names = [name for name in KERNELS if usable and self.options.wants(name)]
        return StepKernels(self.t3, names, self.options.attention == "flash")

    # ---- the call --------------------------------------------------------------------------------

    @torch.inference_mode()
    def generate(
        self,
        requests: Sequence[TokenRequest],
        cancel: Any = None,
        watch: Callable[[list[list[int]], list[TokenResult | None]], None] | None = None,
    ) -> list[TokenResult]:
        """`watch` sees each request's tokens so far, and what results there are, after every block."""
        if not requests:
            return []
        for request in requests:
            self.check(request)
        if self.owner == threading.get_ident():
            raise RuntimeError("generate() was called from inside another's progress callback, which it would wait for")
        while not self.lock.acquire(timeout=-1 if cancel is None else WAIT):
            if cancel.is_set():
                none = torch.zeros(0, dtype=torch.long, device=self.device)
                return [TokenResult(none, "cancelled") for _ in requests]
        try:
            self.owner = threading.get_ident()
            self._reserve(requests)
            return self._run(requests, cancel, watch)
        finally:
            self.owner = None
            self.lock.release()

    def _run(self, requests: Sequence[TokenRequest], cancel: Any, watch: Callable | None) -> list[TokenResult]:
        results: list[TokenResult | None] = [None] * len(requests)
        drawn: list[list[int]] = [[] for _ in requests]
        waiting = deque(range(len(requests)))
        lanes = self.lanes
        lanes.clear()
        while waiting or lanes.active:
            if cancel is not None and cancel.is_set():
                break
            room = min(len(waiting), lanes.capacity - len(lanes.active))
            if room:
                self._admit([(waiting[0], requests[waiting.popleft()]) for _ in range(room)])
                for lane in lanes.active:
                    drawn[lane.index] = lane.tokens  # a list that grows, and is cut, where it is
            else:
                self._decode_block()
            for lane in self._finished():
                results[lane.index] = self._result(lane)
            lanes.compact(self.cache)
            if watch is not None:
                watch(drawn, results)
        for lane in lanes.active:
            lane.stopped = "cancelled"
            results[lane.index] = self._result(lane)
        lanes.clear()
        none = torch.zeros(0, dtype=torch.long, device=self.device)
        return [r or TokenResult(none, "cancelled") for r in results]

    def warmup(self, batch: int = 1) -> None:
        """Allocate and capture for `batch` utterances of ordinary length, ahead of the first request."""
        batch = min(batch, self.options.slots)  # no more are ever side by side
        with self.lock, torch.inference_mode():
            rows = batch if self.config.is_gpt else 2 * batch
            self._make_room(batch, rows, LIVE[3] if self.captured.on else STEP)
            if self.captured.on:
                self._capture(batch, [rows // batch], self.cache.length, self._usual_filters())

    # ---- before a run ----------------------------------------------------------------------------

    def check(self, request: TokenRequest) -> None:
        n, config = len(request.text_ids), self.config
        most = config.max_positions - config.prefix_len - 8 if config.is_gpt else config.text_positions
        if n > most:
            raise ValueError(f"the text has {n} tokens, the position table {most}; split the text (max_chars=280)")
        if n and (int(request.text_ids.max()) >= config.text_vocab or int(request.text_ids.min()) < 0):
            raise ValueError(f"a text token lies outside this vocabulary of {config.text_vocab}: another tokenizer's?")
        prompt = request.cond.cond_prompt_speech_tokens
        if prompt is None:
            raise ValueError("the voice has no prompt tokens; prepare it with this model's prepare_voice()")
        most, steps = config.speech_positions, request.sampling.max_new_tokens
        if not config.is_gpt and steps > most - 2:
            raise ValueError(f"max_new_tokens={steps}: this model counts up to {most - 2}; split the text (max_chars)")
        needed = self._length(request)
        if needed > self.options.cache_len:
            raise ValueError(
                f"{needed} positions are needed for voice, text and max_new_tokens={request.sampling.max_new_tokens}, "
                f"cache_len is {self.options.cache_len}; lower the one or raise the other"
            )

    def _length(self, request: TokenRequest) -> int:
        """Positions a request can come to occupy, what is drawn past its end included."""
        prefix = request.cond.cond_prompt_speech_tokens.shape[-1] + 1 if self.config.is_gpt else self.config.prefix_len
        return prefix + len(request.text_ids) + 2 + request.sampling.max_new_tokens + self.options.poll_every + 1

    def _reserve(self, requests: Sequence[TokenRequest]) -> None:
        slots = min(self.options.slots, len(requests))
        widths = sorted({r.rows for r in requests}, reverse=True)
        length = max(self._length(r) for r in requests)
        self._make_room(slots, slots * widths[0], length)
        self.filters = Filters(
            min_p=not self.config.is_gpt and any(r.sampling.min_p > 0 for r in requests),
            top_p=any(r.sampling.top_p < 1 for r in requests),
            top_k=any(r.sampling.top_k > 0 for r in requests),
        )
        if self.captured.on:
            self._capture(slots, widths, length, self.filters)

    def _make_room(self, slots: int, rows: int, length: int) -> None:
        if self.captured.on:  # a captured batch is padded to a power of two
            slots, rows = bucket(slots), bucket(slots) * (rows // slots)
        self.kernels.fit(rows)
        if self.cache is None or not self.cache.fits(rows, length):
            rows, length = self._grown(rows, -(-length // STEP) * STEP)
            self.cache = None  # the old one goes before the new one comes
            self.captured.forget()
            self.cache = StaticKVCache.allocate(self.config, rows, length, self.device, self.dtype)
        if self.lanes is None or self.lanes.capacity < slots:
            self.captured.forget()
            self.lanes = Lanes(slots, self.config, self.device)
        self.lanes.fit_rows(self.cache.rows)

    def _grown(self, rows: int, length: int) -> tuple[int, int]:
        """What the next cache is to hold: what this one does as well, unless many rows and long rows never met and
        would take several times what either needs."""
        if self.cache is None:
            return rows, length
        both = max(rows, self.cache.rows), max(length, self.cache.length)
        needed = max(rows * length, self.cache.rows * self.cache.length)
        return both if both[0] * both[1] <= 2 * needed else (rows, length)

    def _usual_filters(self) -> Filters:
        return Filters(False, True, True) if self.config.is_gpt else Filters()

    # ---- a new utterance -------------------------------------------------------------------------

    def _admit(self, new: list[tuple[int, TokenRequest]]) -> None:
        """Voices of one prefix length share a pass: all of Llama's, and GPT-2's from recordings of one length."""
        by_length: dict[int, list[tuple[int, TokenRequest, Prefix]]] = defaultdict(list)
        for index, request in new:
            prefix = self.prefixes.get(request.cond)
            by_length[prefix.length].append((index, request, prefix))
        for size, group in by_length.items():
            self._prefill(size, group)

    def _prefill(self, size: int, new: list[tuple[int, TokenRequest, Prefix]]) -> None:
        """The rows of new requests behind prefixes of `size`, right-padded, and their first tokens."""
        lanes = self.lanes
        first = lanes.rows
        added = [lanes.add(index, request) for index, request, _ in new]
        texts = [request.text_ids for _, request, _ in new for _ in range(request.rows)]
        longest = max(len(t) for t in texts)
        padded = torch.stack([torch.nn.functional.pad(t, (0, longest - len(t))) for t in texts]).to(self.device)
        uncond = torch.tensor([k == 1 for _, r, _ in new for k in range(r.rows)], device=self.device)
        # The start tokens follow each text at once, so they are laid into the padded row, not behind it.
        x = self._text_rows(padded, [len(t) for t in texts], uncond)
        self.cache.clear(size + x.shape[1])
        for lane, (_, _, prefix) in zip(added, new):
            self.cache.paste(lane.row_list(), prefix.k, prefix.v)
        span = torch.arange(size, size + x.shape[1], device=self.device)
        hidden = self.t3(x, span[None], Prefill(self.cache, first, size))
        ends = torch.tensor([len(t) + self._starts - 1 for t in texts], device=self.device)
        logits = self.t3.logits(hidden[torch.arange(len(texts), device=self.device), ends])
        for lane, (_, request, _) in zip(added, new):
            lane.position = size + len(request.text_ids) + self._starts
        lanes.upload()
        self._first_tokens(added, logits, first)

    @property
    def _starts(self) -> int:
        return 1 if self.config.is_gpt else 2

    def _text_rows(self, padded: Tensor, lengths: list[int], uncond: Tensor) -> Tensor:
        """(B, T + starts, D): each text, its start tokens right behind it, then padding nobody attends to."""
        x = self.t3.text_part(padded, uncond)
        starts = x[:, padded.shape[1] :].clone()
        for i, n in enumerate(lengths):
            x[i, n : n + self._starts] = starts[i]
        return x

    def _first_tokens(self, added: list[Lane], logits: Tensor, first_row: int) -> None:
        lanes, low = self.lanes, added[0].slot
        span = slice(low, low + len(added))
        self._draw_noise(added)
        token = self._pick(logits, lanes.cond[span] - first_row, lanes.uncond[span] - first_row, span)
        if self.config.is_gpt:  # Turbo's penalty forgets the start token after the first draw
            lanes.seen[span] = False
        lanes.seen[span].scatter_(1, token[:, None], True)
        lanes.token[span] = token
        lanes.collect(added, token[:, None])

    # ---- the loop --------------------------------------------------------------------------------

    def _decode_block(self) -> None:
        """`poll_every` tokens without a look at any of them, then one look."""
        lanes, steps = self.lanes, self.options.poll_every
        for lane in lanes.active:
            lane.state = lane.request.noise.state() if steps > 1 and not lane.greedy else None
        drawn = []
        for _ in range(steps):
            self._draw_noise(lanes.active)
            drawn.append(self._decode().clone())
            for lane in lanes.active:
                lane.position += 1
        lanes.collect(lanes.active, torch.stack(drawn, 1))

    def _decode(self) -> Tensor:
        lanes = self.lanes
        n, rows = len(lanes.active), lanes.rows
        most = max(lane.position for lane in lanes.active)
        guided = rows > n
        if self.captured.on:
            n, rows = bucket(n), bucket(n) * (2 if guided else 1)
            live = live_bucket(most + 1, self.cache.length)
            self.cache.clear(self.cache.length)
            return self.captured.run((n, rows, live, self.filters), partial(self._step, n, rows, live))
        self.cache.clear(most + 1)
        level = all(lane.position == most for lane in lanes.active)
        return self._step(n, rows, most + 1, level)

    def _step(self, n: int, rows: int, live: int, level: bool = False) -> Tensor:
        """One token for n lanes over `rows` rows: what is captured. Reads and writes `lanes` and `cache` only."""
        lanes = self.lanes
        x = self.t3.embed_speech(lanes.token[:n], lanes.step[:n])  # (n, D)
        x = x[lanes.lane_of_row[:rows]].unsqueeze(1)  # (rows, 1, D)
        positions = lanes.position[:rows]
        hidden = self.t3(x, positions[:, None], self._decode_kv(positions, live, level))
        token = self._pick(self.t3.logits(hidden[:, 0]), lanes.cond[:n], lanes.uncond[:n], slice(0, n))
        lanes.seen[:n].scatter_(1, token[:, None], True)
        lanes.token[:n] = token
        lanes.step[:n] += 1
        if self.short_table:
            lanes.step[:n].clamp_(max=self.config.speech_positions - 2)
        lanes.position[:rows] += 1
        return lanes.token[:n]

    def _decode_kv(self, positions: Tensor, live: int, level: bool) -> Decode | DecodeLevel:
        rows, flash = len(positions), self.options.attention == "flash"
        kernel = self.kernels.attention(rows)
        if level and kernel is None and not flash:
            return DecodeLevel(self.cache, rows, live - 1)
        mask = None if kernel else (self.lanes.span[:live] <= positions[:, None])[:, None, None]
        return Decode(self.cache, positions, live, mask, flash, kernel)

    def _pick(self, logits: Tensor, cond: Tensor, uncond: Tensor, span: slice) -> Tensor:
        lanes = self.lanes
        params = lanes.params_of(span)
        if self.kernels.samples(self.filters):
            given = lanes.seen[span], lanes.noise[span], params, self.filters.min_p
            return sampling_kernel.draw(logits, cond, uncond, *given)
        pick = next_token_turbo if self.config.is_gpt else next_token
        if not self.config.is_gpt:
            # Rows without guidance name their own row twice: the difference is 0.
            logits = guide(logits[cond], logits[uncond], params.cfg)
        else:
            logits = logits[cond]
        return pick(logits, lanes.seen[span], lanes.noise[span], params, self.filters)

    def _draw_noise(self, lanes: list[Lane]) -> None:
        for lane in lanes:
            if not lane.greedy:
                lane.request.noise.exponential(self.lanes.noise[lane.slot])

    # ---- the end ---------------------------------------------------------------------------------

    def _finished(self) -> list[Lane]:
        out = []
        for lane in self.lanes.active:
            fresh = lane.tokens[lane.seen_until :]
            limit = lane.request.sampling.max_new_tokens
            if STOP_SPEECH in fresh:
                end, lane.stopped = lane.seen_until + fresh.index(STOP_SPEECH) + 1, "eos"
                if end > limit:
                    end, lane.stopped = limit, "limit"
            elif len(lane.tokens) >= limit:
                end, lane.stopped = limit, "limit"
            elif self.options.runaway_guard and ran_away(lane.tokens, len(lane.request.text_ids)):
                end, lane.stopped = len(lane.tokens), "guard"
            else:
                lane.seen_until = len(lane.tokens)
                continue
            self._rewind(lane, end)
            del lane.tokens[end:]
            out.append(lane)
        return out

    def _rewind(self, lane: Lane, end: int) -> None:
        """Leave the request's generator where `end` draws would have: the audio's noise follows from there."""
        if lane.state is None or end == len(lane.tokens):
            return
        lane.request.noise.restore(lane.state)
        scratch = torch.empty(self.config.speech_vocab, device=self.device)
        for _ in range(end - lane.seen_until):
            lane.request.noise.exponential(scratch)

    def _result(self, lane: Lane) -> TokenResult:
        tokens = [t for t in lane.tokens if t != STOP_SPEECH]
        return TokenResult(torch.tensor(tokens, dtype=torch.long, device=self.device), lane.stopped)

    # ---- capture ---------------------------------------------------------------------------------

    def _capture(self, slots: int, widths: list[int], length: int, filters: Filters) -> None:
        """Every batch size and length this run can pass through, largest first, before it begins. `widths` are the
        rows that its requests take; lanes of both kinds together run as if all took two."""
        lanes = self.lanes
        lanes.clear()
        self.cache.clear(self.cache.length)
        self.filters = filters
        sizes = [s for s in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if s <= bucket(slots)]
        longest = live_bucket(length, self.cache.length)
        lives = [b for b in live_buckets(self.cache.length) if b <= longest]
        for n in reversed(sizes):
            for width in widths:
                for live in reversed(lives):
                    key = (n, width * n, live, filters)
                    if not self.captured.ready(key):
                        self.captured.prepare(key, partial(self._step, *key[:3]))
                        lanes.clear()  # warm-up runs have advanced the positions


def live_buckets(length: int) -> list[int]:
    return sorted({min(b, length) for b in LIVE} | {length})


def live_bucket(need: int, length: int) -> int:
    return next(b for b in live_buckets(length) if b >= need)


