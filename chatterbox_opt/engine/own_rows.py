"""T3's keys and values where each utterance has its own tensor and its own attention: its result does not depend on the
rest of the batch.

A long prompt of a voice lies in memory once, whoever speaks with it. Turbo's 376 positions take 74 MB, a text and its
speech are seldom longer: with a copy for each of eight utterances, a step reads 0.6 GB of them, which takes a CPU
longer than the weights in int8. So a query attends to the prompt and to its utterance's own positions apart, and the
sums of both softmaxes join what they give: exact but for rounding. The queries of all utterances with this voice go
through a head's keys one after another, while these are near the processor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor

from .cache import attend
from .kernels.cpu import rotate_
from .prefix import Prefix

LONG = 128  # positions from which on a prompt is not copied: a second call of attention takes as long as a few dozen


class Own(NamedTuple):
    """An utterance's part of the batch."""

    kv: Tensor  # (layers, 2, 1 | 2, heads, length, head_dim)
    position: int  # to be written; a shared prompt's positions count
    prompt: Prefix | None = None  # shared, and followed by `kv`; None: `kv` begins with a copy


class Run(NamedTuple):
    """Utterances in neighbouring rows with one shared prompt, or with copies of theirs."""

    shared: bool
    widths: tuple[int, ...]  # rows per utterance


def may_be_shared(prompt: Prefix) -> bool:
    """Only torch's attention on a CPU returns the sums of its softmax."""
    return prompt.length >= LONG and prompt.k.is_cpu and prompt.k.dtype == torch.float32


class DecodeEach:
    """T3's `kv` argument: one position per slot, each with its own rows up to its own position, so without mask or
    scatter; the views of all layers are made at once. On a CPU the overhead of an operation exceeds its computation
    here, so the number of operations is what counts."""

    def __init__(self, runs: tuple[Run, ...], dim: int, layers: list[tuple[Tensor, ...]]) -> None:
        """`layers`: for each run the keys and values of its shared prompt, each (heads, rows, P, dim), then for each of
        its utterances three views of its cache: the new position, keys and values up to it."""
        self.runs, self.dim = runs, dim  # channels per head
        self.layers = layers

    @classmethod
    def of(cls, owns: Sequence[Own]) -> DecodeEach:
        """`owns`: in the order of the batch's rows."""
        runs: list[Run] = []
        views: list[Sequence[Tensor]] = []  # each of all layers
        for prompt, together in groupby(owns, key=attrgetter("prompt")):
            each = list(together)
            runs.append(Run(prompt is not None, tuple(own.kv.shape[2] for own in each)))
            if prompt is not None:
                views += _for_rows(prompt, sum(runs[-1].widths))
            for own in each:
                views += _up_to(own)
        return cls(tuple(runs), owns[0].kv.shape[-1], list(zip(*views)))

    def fused(self, layer: int, qkv: Tensor, rope: Tensor | None) -> Tensor:
        heads = qkv.view(len(qkv), 3, -1, self.dim)
        if rope is not None:
            rotate_(heads.narrow(1, 0, 2), rope)
        q, fresh = heads.split_with_sizes((1, 2), 1)
        q = q.transpose(1, 2)  # (R, H, 1, Dh)
        views, sizes = iter(self.layers[layer]), [sum(run.widths) for run in self.runs]
        parts = zip(self.runs, _split(q, sizes), _split(fresh, sizes))
        return _cat([self._attend(run, q, fresh, views) for run, q, fresh in parts])

    @staticmethod
    def _attend(run: Run, q: Tensor, fresh: Tensor, views: Iterator[Tensor]) -> Tensor:
        """Returns (R, 1, H*Dh)."""
        prompt = list(islice(views, 2)) if run.shared else None
        each = []
        for part, mine in zip(_split(q, run.widths), _split(fresh, run.widths)):
            new, keys, values = islice(views, 3)
            new.copy_(mine)
            each.append((part, keys, values))
        if prompt is None:
            return _cat([attend(*one) for one in each])
        own, own_sums = (_cat(parts) for parts in zip(*[attend_summed(*one) for one in each]))
        shared, sums = attend_summed(q.transpose(0, 1), *prompt)  # the rows of a head follow each other
        return _joined(shared.transpose(0, 1), sums.transpose(0, 1), own, own_sums)


@dataclass
class PrefillAfter:
    """T3's `kv` argument: writes the first T positions in all rows of `kv`, each attending to all before it and to the
    whole prompt."""

    kv: Tensor  # (layers, 2, R, heads, length, head_dim)
    prompt: Prefix

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows, _, length, _ = k.shape
        keys, values = self.kv[layer]
        keys[:, :, :length] = k
        values[:, :, :length] = v
        shared = (t[layer].expand(rows, -1, -1, -1) for t in (self.prompt.k, self.prompt.v))
        return _joined(*attend_summed(q, *shared), *attend_summed(q, k, v, causal=True))


def attend_summed(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> tuple[Tensor, Tensor]:
    """q (B, H, T, Dh), k and v (B, H, S, Dh) -> (B, H, T, Dh), and the logarithms of the softmaxes' sums (B, H, T)."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(q, k, v, is_causal=causal)


def _joined(a: Tensor, a_sums: Tensor, b: Tensor, b_sums: Tensor) -> Tensor:
    """Returns (B, T, H*Dh): attention to the positions of both."""
    out = torch.lerp(b, a, torch.sigmoid(a_sums - b_sums).unsqueeze(-1))
    return out.transpose(1, 2).flatten(2)


def _for_rows(prompt: Prefix, rows: int) -> list[Sequence[Tensor]]:
    """Returns keys and values of all layers, each (heads, rows, P, Dh), all rows being one."""
    return [t.unsqueeze(2).expand(-1, -1, rows, -1, -1).unbind() for t in (prompt.k, prompt.v)]


def _up_to(own: Own) -> list[Sequence[Tensor]]:
    """Returns of all layers the new position, each (R, 2, H, Dh), and keys and values up to it."""
    at = own.position - (0 if own.prompt is None else own.prompt.length)
    live = own.kv.narrow(4, 0, at + 1)
    return [own.kv.select(4, at).transpose(1, 2).unbind(), live.select(1, 0).unbind(), live.select(1, 1).unbind()]


def _split(x: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    return x.split_with_sizes(sizes) if len(sizes) > 1 else (x,)


def _cat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]
