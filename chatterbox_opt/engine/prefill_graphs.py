"""T3's prefill of one utterance as CUDA graphs: one per number of rows, length of the voice's prompt and padded length
of the text. The host takes several times as long to launch its thousand small operations as the device to run them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..models.layers import T3Operations
from ..models.t3 import T3
from ..options import EngineOptions
from .agreement import ripples
from .cache import Prefill, empty_kv, paste
from .graphs import Captured, on_trial
from .held import held
from .prefix import Prefix

STEP = 64  # text lengths are padded to multiples of this
LONGEST = 256  # padded; longer texts run eagerly
VOICES = 4  # lengths of voice prompts with graphs; Llama's prompts all have one
ALONE = 4  # so many utterances that join at once are prefilled one by one; more in one eager pass

Key = tuple[int, int, int]  # rows, positions of the voice's prompt, padded positions of the text


@dataclass(eq=False)
class Held:
    """The tensors that a graph reads and writes."""

    x: Tensor  # (rows, T, D)
    ends: Tensor  # (rows,), the last position of each text
    kv: Tensor  # (layers, 2, rows, heads, P + T, head_dim)


class PrefillGraphs:
    """Captured at first use, or in advance by warmup()."""

    def __init__(self, t3: T3, options: EngineOptions, operations: T3Operations) -> None:
        self.t3, self.operations = t3, operations
        self.weight = t3.speech_emb.weight
        recorded = options.compile and options.records("prefill") and self.weight.is_cuda
        trial = on_trial("prefill", options, str(self.weight.dtype).removeprefix("torch."))
        self.captured = Captured("cudagraph" if recorded else None, self.weight.device, trial=trial)
        self._held: dict[Key, Held | None] = {}  # None: it could not be captured
        self._kv: dict[int, Tensor] = {}  # by the prompt's length: graphs of one share it

    @property
    def on(self) -> bool:
        """Whether graphs are made, and nothing spoke against them yet."""
        return self.captured.on and self.captured.closed is None

    def key(self, rows: int, prompt: int, text: int) -> Key | None:
        """Returns the graph to use; None for what runs eagerly."""
        size = -(-text // STEP) * STEP
        known = prompt in self._kv or len(self._kv) < VOICES
        return (rows, prompt, size) if self.captured.on and known and size <= LONGEST else None

    def planned(self, batch: int) -> list[Key]:
        """Returns the graphs that a warm-up captures, the largest first: those of one utterance, whatever `batch`."""
        config = self.t3.config
        rows = 1 if config.is_gpt else 2
        return [(rows, config.prefix_len, size) for size in range(LONGEST, 0, -STEP)]

    def warmup(self, batch: int) -> None:
        if self.on:
            for key in self.planned(batch):
                self._capture(key)

    def run(self, x: Tensor, prefix: Prefix, ends: Tensor, kv: Tensor) -> Tensor | None:
        """x (rows, n, D), the text of one utterance, ends (rows,) -> logits (rows, V) at these positions, overwritten
        by the next call; fills its rows of the cache, kv (layers, 2, rows, heads, positions, head_dim). Returns None
        where there is no graph."""
        rows, n, _ = x.shape
        key = self.key(rows, prefix.length, n)
        if key is None or not self._capture(key):
            return None
        mine = self._held[key]
        mine.x[:, :n] = x  # what follows are finite numbers of an earlier text, which this one does not see
        mine.ends.copy_(ends)
        for row in range(rows):
            paste(mine.kv, row, prefix.k, prefix.v)
        logits = self.captured.run(key, partial(self._prefill, mine, prefix.length))
        filled = prefix.length + n
        kv[..., :filled, :] = mine.kv[..., :filled, :]
        return logits

    def _capture(self, key: Key) -> bool:
        """Captures a graph unless that is done; returns whether it can be used."""
        return held(self._held, key, self.captured, partial(self._prepare, key)) is not None

    def _prepare(self, key: Key) -> Held | None:
        made, prompt = self._hold(key), key[1]
        run, spoil = (partial(do, made, prompt) for do in (self._prefill, self._spoil))
        return made if self.captured.prepare(key, run, spoil=spoil) else None

    def _hold(self, key: Key) -> Held:
        (rows, prompt, size), device, dtype = key, self.weight.device, self.weight.dtype
        if prompt not in self._kv:
            most = 1 if self.t3.config.is_gpt else 2
            self._kv[prompt] = empty_kv(self.t3.config, most, prompt + LONGEST, device, dtype).zero_()
        kv = self._kv[prompt].narrow(2, 0, rows).narrow(4, 0, prompt + size)
        x = ripples(rows, size, self.t3.config.dim, device=device).to(dtype)
        return Held(x, torch.full((rows,), size - 1, device=device), kv)

    def _prefill(self, mine: Held, prompt: int) -> Tensor:
        rows, size, _ = mine.x.shape
        span = torch.arange(prompt, prompt + size, device=mine.x.device)
        hidden = self.t3(mine.x, span[None], Prefill(mine.kv, prompt), self.operations)
        return self.t3.logits(hidden[torch.arange(rows, device=mine.x.device), mine.ends])

    @staticmethod
    def _spoil(mine: Held, prompt: int) -> None:
        mine.kv[..., prompt:, :].zero_()
