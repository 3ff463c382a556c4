"""Chooses, per call, which operations of a decode step run as kernels. T3 is handed `operations`; the cache and
sampling ask."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...models import layers
from ...models.t3 import T3
from ..cache import Decode, StaticKVCache, empty_kv
from ..graphs import bucket
from ..sampling import Filters, RowParams, guide, next_token, next_token_turbo
from . import attention, linear, sampling, trial

MOST_ROWS = 32  # tried; attention with more rows is judged by this many
LIVE = 512  # positions in a trial, 20 s of speech
SLOTS = 2  # slots in a trial of sampling


class StepKernels:
    """`wanted`: names of options.KERNELS. A row count is tried as the next power of two, as kernels are compiled so."""

    def __init__(
        self, t3: T3, wanted: Collection[str], flash: bool = False, judge: Callable[..., bool] = trial.accepts,
        plain: layers.T3Operations = layers.T3_REFERENCE,
    ) -> None:  # fmt: skip
        """`plain` runs where no kernel does."""
        self.t3, self.wanted, self.flash, self.judge = t3, frozenset(wanted), flash, judge
        self.device, self.dtype = t3.speech_emb.weight.device, t3.speech_emb.weight.dtype
        self.good: set[tuple] = set()
        self._tried: set[int] = set()
        self._sampling_tried = False
        own = {name: getattr(self, name) for name in ("norm_linear", "linear_add") if name in self.wanted}
        self.plain, self.operations = plain, dataclasses.replace(plain, **own)
        gpt = t3.config.is_gpt
        blocks = list(t3.tfmr.h if gpt else t3.tfmr.layers)
        self._attn = [b.attn if gpt else b.self_attn for b in blocks]
        self._products = [gpt2_products(b) if gpt else llama_products(b) for b in blocks]

    # ---- what the step asks ----------------------------------------------------------------------

    def norm_linear(self, x: Tensor, norm: nn.Module, product: nn.Module, act: Callable | None = None) -> Tensor:
        trusted = linear.supports(x, product, norm) and _key("norm_linear", product, _size(x), norm, act) in self.good
        return (linear if trusted else self.plain).norm_linear(x, norm, product, act)

    def linear_add(self, x: Tensor, product: nn.Module, residual: Tensor) -> Tensor:
        trusted = linear.supports(x, product) and _key("linear_add", product, _size(x)) in self.good
        return (linear if trusted else self.plain).linear_add(x, product, residual)

    def attention(self, rows: int) -> Callable | None:
        return attention.decode if ("attention", min(bucket(rows), MOST_ROWS)) in self.good else None

    def samples(self, filters: Filters) -> bool:
        return ("sampling", filters.min_p, filters.top_p or filters.top_k) in self.good

    # ---- what is tried ---------------------------------------------------------------------------

    def fit(self, rows: int) -> None:
        """Tries the kernels that up to `rows` rows use. Must not run while a graph is being captured."""
        sizes = [1 << i for i in range(min(bucket(rows), MOST_ROWS).bit_length())]
        for size in sizes:
            if size in self._tried:
                continue
            self._tried.add(size)
            if size <= linear.MOST_ROWS:
                self._try_linears(size)
            if "attention" in self.wanted:
                self._try_attention(size)
        if "sampling" in self.wanted and not self._sampling_tried:
            self._sampling_tried = True
            for min_p in (False,) if self.t3.config.is_gpt else (True, False):
                for top in (False, True):
                    self._try_sampling(Filters(min_p, top, top))

    def _random(self, *shape: int) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(0)  # leaves the requests' generators alone
        return torch.randn(shape, generator=generator, device=self.device, dtype=torch.float32).to(self.dtype)

    def _judge(self, key: tuple, shape: str, kernel: trial.Run, twin: trial.Run, tolerance: float) -> None:
        shape = f"{shape}, {str(self.dtype).removeprefix('torch.')}"
        if self.judge(key[0], shape, kernel, twin, device=self.device, tolerance=tolerance):
            self.good.add(key)

    def _try_linears(self, size: int) -> None:
        for j, (name, product, norm, act) in enumerate(self._products[0]):
            if name not in self.wanted or type(product) is not nn.Linear:
                continue
            n, k = product.weight.shape
            x, residual = self._random(size, 1, k), self._random(size, 1, n)
            if not linear.supports(x, product):
                continue
            about = [type(norm).__name__ if norm else "no norm", act.__name__ if act else "no activation"]
            shape = ", ".join([f"{n}x{k}", f"bias {product.bias is not None}", *about, f"{size} rows"])
            both = [partial(self._run_linear, side, j, x, residual) for side in (linear, layers)]
            self._judge(_key(name, product, size, norm, act), shape, *both, trial.TOLERANCE[self.dtype])

    def _run_linear(self, side: Any, j: int, x: Tensor, residual: Tensor, i: int) -> tuple[Tensor]:
        """Runs the j-th product of block i: alternating blocks, as one block's weights would stay in the L2 cache."""
        name, product, norm, act = self._products[i % len(self._products)][j]
        if name == "linear_add":
            return (side.linear_add(x, product, residual),)
        return (side.norm_linear(x, norm, product, act),)

    def _try_attention(self, size: int) -> None:
        config = dataclasses.replace(self.t3.config, layers=1)
        gpt = config.is_gpt
        positions = LIVE - 1 - 5 * torch.arange(size, device=self.device)
        rope = None if gpt else self.t3.tfmr.rope(self.device)[positions[:, None]]
        mask = (torch.arange(LIVE, device=self.device) <= positions[:, None])[:, None, None]
        qkv = self._random(size, 1, 3 * config.dim)

        def side(kernel: Callable | None) -> trial.Run:
            kv = empty_kv(config, size, LIVE, self.device, self.dtype)
            cache = StaticKVCache(kv.copy_(self._random(*kv.shape)))
            step = Decode(cache, positions, LIVE, mask, self.flash, kernel)
            given = (qkv,) if gpt else (qkv, rope)
            return lambda i: (self._attn[i % len(self._attn)](*given, 0, step), cache.kv)

        shape = f"{config.heads} heads of {config.head_dim}, {'no ' * gpt}rope, {size} rows of {LIVE} positions"
        self._judge(("attention", size), shape, side(attention.decode), side(None), trial.TOLERANCE[self.dtype])

    def _try_sampling(self, filters: Filters) -> None:
        turbo, vocab = self.t3.config.is_gpt, self.t3.config.speech_vocab
        full: dict[str, Any] = dict(device=self.device, dtype=torch.float32)
        generator = torch.Generator(self.device).manual_seed(0)
        logits = 4 * torch.randn(2 * SLOTS, vocab, generator=generator, **full)
        seen = torch.rand(SLOTS, vocab, generator=generator, **full) < 0.1
        noise = torch.empty(SLOTS, vocab, **full).exponential_(generator=generator)
        heat = torch.full((SLOTS, 1), 0.8, **full)
        heat[-1] = 0
        half, one = torch.full((SLOTS, 1), 0.5, **full), torch.ones(SLOTS, 1, **full)
        params = RowParams(half, heat, 0.1 * half, 0.95 * one, (vocab // 6 * one).long(), 2.4 * half)
        cond = torch.arange(0, 2 * SLOTS, 2, device=self.device)

        def twin(_: int) -> tuple[Tensor]:
            if turbo:
                return (next_token_turbo(logits[cond], seen, noise, params, filters),)
            return (next_token(guide(logits[cond], logits[cond + 1], params.cfg), seen, noise, params, filters),)

        def kernel(_: int) -> tuple[Tensor]:
            return (sampling.sample(logits, cond, cond + 1, seen, noise, params, filters, turbo),)

        shape = f"{vocab} tokens, min-p {filters.min_p}, top-k and top-p {filters.top_p}"
        self._judge(("sampling", filters.min_p, filters.top_p), shape, kernel, twin, 0.0)


def llama_products(block: nn.Module) -> list[tuple]:
    """Returns (kernel, linear, norm, activation) of each product."""
    attn, mlp = block.self_attn, block.mlp
    return [
        ("norm_linear", attn.qkv_proj, block.input_layernorm, None),
        ("norm_linear", mlp.gate_up_proj, block.post_attention_layernorm, layers.swiglu),
        ("linear_add", attn.o_proj, None, None),
        ("linear_add", mlp.down_proj, None, None),
    ]


def gpt2_products(block: nn.Module) -> list[tuple]:
    return [
        ("norm_linear", block.attn.c_attn, block.ln_1, None),
        ("norm_linear", block.mlp.c_fc, block.ln_2, layers.gelu),
        ("linear_add", block.attn.c_proj, None, None),
        ("linear_add", block.mlp.c_proj, None, None),
    ]


def _key(name: str, product: nn.Module, size: int, norm: nn.Module | None = None, act: Callable | None = None) -> tuple:
    """Returns what a verdict on a product is about: another norm or activation is another kernel."""
    return name, product.weight.shape, product.bias is None, type(norm), act, size


def _size(x: Tensor) -> int:
    return bucket(x.numel() // x.shape[-1])
