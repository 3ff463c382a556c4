"""act(norm(x) @ W.T + b) + residual for the few rows of a decode step, in one launch. Its plain-torch twins are
models/layers.norm_linear and models/layers.linear_add.

Such a product takes as long as reading its weights, so every weight is read once for all rows, and all of them before
the kernel waits for its predecessor (early.py). Up to FMA_ROWS rows use multiply-add. For more, half precision uses
tensor cores, and float32 is left to the twin, because the sums of more rows do not fit into registers.
Compared with the twins in Triton's interpreter and compiled for every target; run and timed on an H100.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...models.layers import gelu, swiglu
from .early import early, gdc_launch_dependents, gdc_wait
from .language import tl, triton

FMA_ROWS, MOST_ROWS = 4, 16  # most rows by multiply-add; most rows at all: for more a GEMM library is as fast
READ = 256  # numbers that a warp reads at once, 16 bytes of bf16 per thread
TILE_K = 256  # inputs per product of tensor cores
ACTS = {None: 0, gelu: 1, swiglu: 2}  # swiglu: W is gate over up, (2 N, K)


if triton is not None:

    @triton.jit
    def _finish(
        y, gate, bias, residual, out, at, n, inside, ACT: tl.constexpr, BIASED: tl.constexpr, ADDED: tl.constexpr
    ):  # fmt: skip
        if BIASED:
            y += tl.load(bias + n, mask=inside, other=0.0).to(tl.float32)
        if ACT == 1:  # GPT-2's 0.5 y (1 + tanh u), written y sigmoid(2u): no difference of nearly equal numbers
            y = y / (1.0 + tl.exp(-1.5957691216057308 * (y + 0.044715 * y * y * y)))
        if ACT == 2:
            y = gate / (1.0 + tl.exp(-gate)) * y
        if ADDED:
            y = y.to(out.dtype.element_ty).to(tl.float32)  # the twin's product is rounded before the sum
            y += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)

    @triton.jit(do_not_specialize=["rows"])
    def _by_adding(
        x, gain, shift, weight, bias, residual, out, rows, eps,
        N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr,
        BIASED: tl.constexpr, ADDED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EARLY: tl.constexpr,
    ):  # fmt: skip
        # All threads lie along K, so that each reads its part of a row once for all outputs, and threads exchange
        # nothing before the sums at the end.
        if EARLY:
            gdc_launch_dependents()
        r = tl.arange(0, ROWS)[None, :, None]
        n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N))[:, None, None]
        span = tl.arange(0, BLOCK_K)[None, None, :]
        tiles, gates, parts = (), (), ()
        for start in tl.static_range(0, K, BLOCK_K):
            k = start + span
            at_w, inside = weight + n * K + k, (n < N) & (k < K)
            tiles = tiles + (tl.load(at_w + (N * K if ACT == 2 else 0), mask=inside, other=0.0),)  # noqa: RUF005
            if ACT == 2:
                gates = gates + (tl.load(at_w, mask=inside, other=0.0),)  # noqa: RUF005
        # LayerNorm(v) @ w = (v @ (gain w) - mean(v) sum(gain w)) / deviation(v) + shift @ w
        gains, constant = tl.zeros((BLOCK_N, 1, BLOCK_K), tl.float32), tl.zeros((BLOCK_N, 1, BLOCK_K), tl.float32)
        if NORM == 2:
            for i in tl.static_range(0, len(tiles)):
                k = i * BLOCK_K + span
                w = tiles[i].to(tl.float32)  # type: ignore[var-annotated]
                gains += w * tl.load(gain + k, mask=k < K, other=0.0).to(tl.float32)
                constant += w * tl.load(shift + k, mask=k < K, other=0.0).to(tl.float32)
        gained, shifted = tl.sum(gains, 2), tl.sum(constant, 2)
        if EARLY:
            gdc_wait()
        for start in tl.static_range(0, K, BLOCK_K):
            k = start + span
            v = tl.load(x + r * K + k, mask=(r < rows) & (k < K), other=0.0)
            parts = parts + (v.to(tl.float32),)  # noqa: RUF005
        total, squares = tl.zeros((1, ROWS, BLOCK_K), tl.float32), tl.zeros((1, ROWS, BLOCK_K), tl.float32)
        main, gated = tl.zeros((BLOCK_N, ROWS, BLOCK_K), tl.float32), tl.zeros((BLOCK_N, ROWS, BLOCK_K), tl.float32)
        for i in tl.static_range(0, len(parts)):
            k = i * BLOCK_K + span
            v = parts[i]
            if NORM == 2:
                total += v
            if NORM != 0:
                squares += v * v
                v = v * tl.load(gain + k, mask=k < K, other=0.0).to(tl.float32)
            main += tiles[i].to(tl.float32) * v
            if ACT == 2:
                gated += gates[i].to(tl.float32) * v
        y, gate = tl.sum(main, 2), tl.sum(gated, 2)
        if NORM != 0:
            mean = tl.sum(total, 2) / K  # 0 for RMSNorm
            size = 1.0 / tl.sqrt(tl.maximum(tl.sum(squares, 2) / K - mean * mean, 0.0) + eps)
            # a gated LayerNorm would need sums of its own; no model here has one
            y, gate = (y - mean * gained) * size + shifted, gate * size
        n = tl.reshape(n, (BLOCK_N, 1))
        r = tl.reshape(r, (1, ROWS))
        inside = (r < rows) & (n < N)
        n, at = tl.broadcast_to(n, (BLOCK_N, ROWS)), r * N + n
        _finish(y, gate, bias, residual, out, at, n, inside, ACT, BIASED, ADDED)

    @triton.jit(do_not_specialize=["rows"])
    def _by_tensor_cores(
        x, gain, shift, weight, bias, residual, out, rows, eps,
        N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr,
        BIASED: tl.constexpr, ADDED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EARLY: tl.constexpr,
    ):  # fmt: skip
        if EARLY:
            gdc_launch_dependents()
        r = tl.arange(0, ROWS)
        n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        span = tl.arange(0, BLOCK_K)
        tiles, gates = (), ()
        gained, shifted = tl.zeros((BLOCK_N,), tl.float32), tl.zeros((BLOCK_N,), tl.float32)
        for start in tl.static_range(0, K, BLOCK_K):
            k = start + span
            at_w, inside = weight + n[:, None] * K + k[None, :], (n < N)[:, None] & (k < K)[None, :]
            tiles = tiles + (tl.load(at_w + (N * K if ACT == 2 else 0), mask=inside, other=0.0),)  # noqa: RUF005
            if ACT == 2:
                gates = gates + (tl.load(at_w, mask=inside, other=0.0),)  # noqa: RUF005
        if NORM == 2:  # as in _by_adding
            for i in tl.static_range(0, len(tiles)):
                k, w = i * BLOCK_K + span, tiles[i].to(tl.float32)  # type: ignore[var-annotated]
                gained += tl.sum(w * tl.load(gain + k, mask=k < K, other=0.0).to(tl.float32)[None, :], 1)
                shifted += tl.sum(w * tl.load(shift + k, mask=k < K, other=0.0).to(tl.float32)[None, :], 1)
        if EARLY:
            gdc_wait()
        scale = tl.full((ROWS,), 1.0, tl.float32)
        if NORM != 0 and x.dtype.element_ty == tl.float16:  # v * gain may be too large or too small for it
            raw = tl.zeros((ROWS,), tl.float32)
            for i in tl.static_range(0, len(tiles)):
                k = i * BLOCK_K + span
                v = tl.load(x + r[:, None] * K + k[None, :], mask=(r < rows)[:, None] & (k < K)[None, :], other=0.0)
                raw += tl.sum(v.to(tl.float32) * v.to(tl.float32), 1)
            scale = 1.0 / tl.sqrt(raw / K + eps)
        total, squares = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
        main, gated = tl.zeros((BLOCK_N, ROWS), tl.float32), tl.zeros((BLOCK_N, ROWS), tl.float32)
        for i in tl.static_range(0, len(tiles)):
            k = i * BLOCK_K + span
            v = tl.load(x + r[:, None] * K + k[None, :], mask=(r < rows)[:, None] & (k < K)[None, :], other=0.0)
            if NORM != 0:
                u = v.to(tl.float32)
                squares += tl.sum(u * u, 1)
                if NORM == 2:
                    total += tl.sum(u, 1)
                g = tl.load(gain + k, mask=k < K, other=0.0).to(tl.float32)
                v = (u * scale[:, None] * g[None, :]).to(x.dtype.element_ty)
            v = tl.trans(v)
            main = tl.dot(tiles[i], v, main)
            if ACT == 2:
                gated = tl.dot(gates[i], v, gated)
        if NORM != 0:
            mean = (total / K)[None, :]
            size = 1.0 / tl.sqrt(tl.maximum((squares / K)[None, :] - mean * mean, 0.0) + eps)
            main, gated = main / scale[None, :], gated / scale[None, :]
            main, gated = (main - mean * gained[:, None]) * size + shifted[:, None], gated * size
        n, r = n[:, None], r[None, :]
        at, inside = r * N + n, (r < rows) & (n < N)
        _finish(main, gated, bias, residual, out, at, tl.broadcast_to(n, (BLOCK_N, ROWS)), inside, ACT, BIASED, ADDED)


class Plan(NamedTuple):
    """A kernel, its constants and its number of programs."""

    kernel: Any
    programs: int
    constants: dict[str, int]


def plan(rows: int, n: int, k: int, norm: int = 0, act: int = 0, **flags: bool) -> Plan:
    """Returns the kernel for `rows` rows of `k` inputs and `n` outputs."""
    size = triton.next_power_of_2(rows)
    if size <= FMA_ROWS:
        kernel = _by_adding
        tile_n, warps = adding_tile(k)
        tile_k = min(READ * warps, triton.next_power_of_2(k))
    else:
        kernel, (tile_n, warps) = _by_tensor_cores, dot_tile(k)
        size = 16  # the least that tl.dot accepts
        tile_k = min(TILE_K, max(16, triton.next_power_of_2(k)))
    shape = dict(N=n, K=k, ROWS=size, NORM=norm, ACT=act, BLOCK_N=tile_n, BLOCK_K=tile_k)
    return Plan(kernel, triton.cdiv(n, tile_n), dict(**shape, **flags, num_warps=warps, num_stages=1))


def adding_tile(k: int) -> tuple[int, int]:
    """Returns the outputs and the warps of a multiply-add program, as they were fastest for most shapes on an H100."""
    return (4, 2) if k <= 1024 else (2, 4)


def dot_tile(k: int) -> tuple[int, int]:
    """Returns the outputs and the warps of a tensor-core program, likewise. More outputs of 4,096 inputs have no room
    in the shared memory of smaller devices."""
    return (16, 4) if k <= 1024 else (8, 2)


def supports(x: Tensor, linear: nn.Module, norm: nn.Module | None = None) -> bool:
    """Whether the kernel takes these: plain linears of one dtype and few rows; `x` may have any strides."""
    if type(linear) is not nn.Linear or x.dtype != linear.weight.dtype:
        return False
    if x.numel() > (MOST_ROWS if x.element_size() == 2 else FMA_ROWS) * x.shape[-1]:
        return False
    tensors = [linear.weight, linear.bias, *([norm.weight, getattr(norm, "bias", None)] if norm is not None else [])]
    return all(t is None or t.is_contiguous() for t in tensors)


def norm_linear(x: Tensor, norm: nn.Module, linear: nn.Linear, act: Callable | None = None) -> Tensor:
    return _run(x, linear, norm=norm, act=act)


def linear_add(x: Tensor, linear: nn.Linear, residual: Tensor) -> Tensor:
    return _run(x, linear, residual=residual)


def _run(
    x: Tensor, linear: nn.Linear, norm: nn.Module | None = None, act: Callable | None = None,
    residual: Tensor | None = None,
) -> Tensor:  # fmt: skip
    weight, bias = linear.weight, linear.bias
    (n, k), rows = weight.shape, x.numel() // x.shape[-1]
    if act is swiglu:
        n //= 2
        if bias is not None:
            raise ValueError("gate and up with a bias: no model has them, and the kernel does not")
    shift = getattr(norm, "bias", None)
    kind = 0 if norm is None else 1 if shift is None else 2
    x = x.contiguous()
    out = x.new_empty(*x.shape[:-1], n)
    kernel, programs, constants = plan(
        rows, n, k, kind, ACTS[act], BIASED=bias is not None, ADDED=residual is not None
    )
    given = (norm.weight if kind else None, shift, weight, bias, None if residual is None else residual.contiguous())
    tensors = [x if t is None else t for t in given]  # tensors that this kernel does not read may be any address
    with torch.cuda.device_of(x):
        kernel[(programs,)](x, *tensors, out, rows, norm.eps if kind else 0.0, **constants, **early(x.device))
    return out
