"""Each kernel against its plain twin: in Triton's interpreter, in its compiler, and on a GPU if there is one."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from draws import FILTERS, drawn_plainly, some_draw
from torch import nn

from chatterbox_opt.config import tiny
from chatterbox_opt.engine.cache import Decode, StaticKVCache
from chatterbox_opt.engine.kernels import add_norm, attention, flash, linear, sampling, snake, trial
from chatterbox_opt.engine.mel import in_half
from chatterbox_opt.models import estimator, hift
from chatterbox_opt.models.conformer import Norm
from chatterbox_opt.models.estimator import attend_all
from chatterbox_opt.models.flow import FlowOperations, time_span
from chatterbox_opt.models.gpt2 import Attention as GptAttention
from chatterbox_opt.models.gpt2 import LayerNorm
from chatterbox_opt.models.layers import gelu, linear_add, norm_linear, rope_table, swiglu
from chatterbox_opt.models.llama import Attention, RMSNorm

triton = pytest.importorskip("triton")
from flow_pairs import random_flow  # noqa: E402
from kernel_runs import SHARED, compile_launches  # noqa: E402

TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
DTYPES = list(TOLERANCE)
CPU = torch.device("cpu")
NO_DOT = "the interpreter multiplies tiles of bfloat16 as if they were integers; float16 takes the same path"
ROWS = [1, 2, 3, 8, 16]


difference = trial.difference


def some_norm(kind: str, dim: int) -> nn.Module:
    norm = RMSNorm(dim, 1e-5) if kind == "rms" else LayerNorm(dim, 1e-5)
    for p in norm.parameters():
        p.data = torch.randn(dim)
    return norm


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(
    ("kind", "act", "dim", "wide"),
    [("rms", None, 64, 192), ("rms", swiglu, 70, 2 * 37), ("layer", None, 129, 40), ("layer", gelu, 64, 100)],
    ids=["rms", "swiglu", "layer", "gelu"],
)
@pytest.mark.usefixtures("interpreted")
@torch.inference_mode()
def test_norm_linear(kind, act, dim, wide, rows, dtype):
    norm = some_norm(kind, dim).to(dtype)
    product = nn.Linear(dim, wide, bias=kind == "layer").to(dtype)
    x = (3 * torch.randn(rows, 1, dim) + 1).to(dtype)
    if rows > linear.FMA_ROWS and dtype == torch.float32:
        assert not linear.supports(x, product, norm)
        return
    assert linear.supports(x, product, norm)
    if rows > linear.FMA_ROWS and dtype == torch.bfloat16:
        pytest.skip(NO_DOT)
    got = linear.norm_linear(x, norm, product, act)
    assert difference(got, norm_linear(x, norm, product, act)) < TOLERANCE[dtype]


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("rows", [2, 8])
@pytest.mark.usefixtures("interpreted")
@torch.inference_mode()
def test_a_norm_of_large_numbers_stays_within_float16(kind, rows):
    norm, product = some_norm(kind, 300).half(), nn.Linear(300, 40, bias=False).half()
    norm.weight.data = 8 * norm.weight.data.abs() + 8  # times x it exceeds 65,504, and the norm of x does not
    x = (9000 * torch.randn(rows, 1, 300)).half()
    got = linear.norm_linear(x, norm, product)
    assert difference(got, norm_linear(x, norm, product)) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("dim", "wide", "bias"), [(64, 64, True), (300, 37, False), (600, 5, True)])
@pytest.mark.usefixtures("interpreted")
@torch.inference_mode()
def test_linear_add(dim, wide, bias, rows, dtype):
    product = nn.Linear(dim, wide, bias=bias).to(dtype)
    x, residual = torch.randn(rows, 1, dim).to(dtype), torch.randn(rows, 1, wide).to(dtype)
    if not linear.supports(x, product):
        assert (rows, dtype) in {(8, torch.float32), (16, torch.float32)}
        return
    if rows > linear.FMA_ROWS and dtype == torch.bfloat16:
        pytest.skip(NO_DOT)
    got = linear.linear_add(x, product, residual)
    assert difference(got, linear_add(x, product, residual)) < TOLERANCE[dtype]


def sides(positions: list[int], live: int, heads: int, dim: int, turn: bool, dtype: torch.dtype, device=CPU):
    """Returns (out, k, v) of kernel and of twin for the same new position, each with its own cache."""
    rows, config = len(positions), dataclasses.replace(tiny("tts").t3, dim=heads * dim, heads=heads, layers=2)
    kv = torch.randn(2, 2, rows + 1, heads, live + 7, dim, device=device).to(dtype)
    qkv = torch.randn(rows, 1, 3 * heads * dim, device=device).to(dtype)
    at = torch.tensor(positions, device=device)
    mask = (torch.arange(live, device=device) <= at[:, None])[:, None, None]
    attn = (Attention if turn else GptAttention)(config)
    given = (qkv, rope_table(config, live, device)[at[:, None]]) if turn else (qkv,)
    results = []
    for kernel in (attention.decode, None):
        cache = StaticKVCache(kv.clone())
        out = attn(*given, 1, Decode(cache, at, live, mask, kernel=kernel))
        results.append((out, *cache.kv.unbind(1)))
    return results


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("turn", [True, False], ids=["rope", "no rope"])
@pytest.mark.parametrize(
    ("positions", "live", "heads", "dim"),
    [([0], 1, 1, 16), ([5, 0], 70, 2, 16), ([0, 63, 64], 65, 3, 12), ([199, 0, 64, 130, 63, 65, 1, 100], 200, 2, 16),
     ([700, 20], 1000, 1, 64)],
    ids=str,
)  # fmt: skip
@pytest.mark.usefixtures("interpreted")
@torch.inference_mode()
def test_attention(positions, live, heads, dim, turn, dtype):
    got, wanted = sides(positions, live, heads, dim, turn, dtype)
    assert max(map(difference, got, wanted)) < TOLERANCE[dtype]
    untouched = got[1][0], got[1][:, -1]
    assert all(torch.equal(a, b) for a, b in zip(untouched, (wanted[1][0], wanted[1][:, -1])))


@pytest.mark.usefixtures("interpreted")
@torch.inference_mode()
def test_attention_reads_nothing_behind_a_rows_position():
    rows, live = 2, 300
    cache = StaticKVCache(torch.full((1, 2, rows, 2, 512, 16), torch.nan))
    positions = torch.tensor([0, 90])
    keys, values = cache.kv.unbind(1)
    keys[:, 1, :, :90], values[:, 1, :, :90] = 1, 2
    out = attention.decode(torch.ones(rows, 1, 96), None, keys[0], values[0], positions, live)
    assert out.isfinite().all()
    assert torch.allclose(out[1], torch.tensor((2 * 90 + 1) / 91))


@pytest.mark.parametrize("default", [torch.float16, torch.float64])
@pytest.mark.usefixtures("interpreted")
@torch.inference_mode()
def test_the_default_dtype_of_the_process_does_not_reach_attention(default):
    """Its partial sums are in float32."""
    keys, values = torch.randn(2, 1, 2, 1000, 16)
    given = torch.randn(1, 1, 96), None, keys, values, torch.tensor([700]), 1000
    assert attention.split_positions(2, 1000)[0] > 1
    wanted = attention.decode(*given)
    torch.set_default_dtype(default)
    try:
        got = attention.decode(*given)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(got, wanted)


def test_every_position_has_one_program():
    for heads in (1, 2, 31, 32, 100, 264, 1000):
        for live in (1, 63, 64, 65, 255, 256, 1000, 4608):
            splits, chunk = attention.split_positions(heads, live)
            assert chunk % attention.BLOCK == 0
            assert (splits - 1) * chunk < live <= splits * chunk
            assert splits == 1 or heads <= attention.PROGRAMS


@pytest.mark.usefixtures("interpreted")
def test_snake():
    x = (3 * torch.randn(2, 24, 1, 37)).contiguous(memory_format=torch.channels_last)
    for scale in (torch.rand(24) + 0.5, None):
        for dtype, bound in ((torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
            given = None if scale is None else scale.to(dtype)
            got = snake.snake(x.to(dtype, copy=True), given)
            wanted = hift.snake(x.to(dtype, copy=True).float(), None if scale is None else given.float())
            assert difference(got.float(), wanted) < bound
    with pytest.raises(ValueError, match="channels last"):
        snake.snake(torch.randn(1, 4, 2, 3))


def some_frames(rows: int, frames: int, heads: int, dim: int, dtype: torch.dtype, device=CPU):
    """qkv of the flow, and the mask of rows that end at different frames."""
    qkv = torch.randn(rows, frames, 3 * heads * dim, device=device).to(dtype)
    lengths = torch.tensor([frames - 7 * i for i in range(rows)], device=device).clamp(min=1)
    there = torch.arange(frames, device=device) < lengths[:, None]
    return qkv, torch.zeros_like(there, dtype=dtype).masked_fill_(~there, -torch.inf)[:, None, None]


@pytest.mark.parametrize(
    ("rows", "frames", "heads", "dim"), [(1, 1, 1, 16), (2, 64, 2, 16), (3, 65, 2, 12), (2, 200, 1, 64)], ids=str
)
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.usefixtures("interpreted")
@torch.inference_mode()
def test_flow_attention(masked, rows, frames, heads, dim):
    qkv, mask = some_frames(rows, frames, heads, dim, torch.float16)
    mask = mask if masked else None
    got = flash.attend_all(qkv, mask, heads)
    assert difference(got, attend_all(qkv, mask, heads)) < TOLERANCE[torch.float16]


@pytest.mark.usefixtures("interpreted")
@torch.inference_mode()
def test_flow_attention_hears_nothing_behind_a_rows_end():
    qkv, mask = some_frames(2, 100, 2, 16, torch.float16)
    before = flash.attend_all(qkv, mask, 2)
    qkv[1, 93:] = 100
    assert torch.equal(flash.attend_all(qkv, mask, 2)[1, :93], before[1, :93])


def some_sum(rows, frames, channels, dtype, device=CPU):
    norm = Norm(channels, eps=1e-5, device=device)
    for p in norm.parameters():
        p.data = torch.randn(channels, device=device)
    x = 3 * torch.randn(rows, frames, channels, device=device) + 1
    return x, torch.randn(rows, frames, channels, device=device).to(dtype), norm


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "frames", "channels"), [(1, 1, 16), (2, 7, 48), (1, 13, 256)])
@pytest.mark.usefixtures("interpreted")
@torch.inference_mode()
def test_add_norm(rows, frames, channels, dtype):
    given = some_sum(rows, frames, channels, dtype)
    (total, normed), (sum_, wanted) = add_norm.add_norm(*given), estimator.add_norm(*given)
    assert torch.equal(total, sum_)
    assert normed.dtype == dtype
    assert difference(normed, wanted.to(dtype)) < TOLERANCE[dtype]


@pytest.mark.usefixtures("interpreted")
@torch.inference_mode()
def test_a_step_of_the_flow_with_its_kernels():
    flow = random_flow()
    in_half(flow, torch.float16)
    lengths = torch.tensor([20, 31])
    ids, prompt, xvector = torch.randint(0, 6561, (2, 31)), torch.zeros(2, 62, 80), torch.randn(2, 192)
    conditions = flow.conditions(flow.encode(ids, lengths), flow.speaker(xvector), prompt)
    there = torch.arange(62) < 2 * lengths[:, None]
    mask = torch.zeros(2, 1, 1, 62, dtype=torch.float16).masked_fill_(~there[:, None, None], -torch.inf)
    time = flow.decoder.estimator.time_table(time_span(10, False))[0]
    given = torch.randn(2, 62, 80), time, torch.tensor(0.1), conditions, mask.repeat(2, 1, 1, 1)
    wanted = flow.euler(*given)
    got = flow.euler(*given, ops=FlowOperations(attend_all=flash.attend_all, add_norm=add_norm.add_norm))
    assert difference(got[there], wanted[there]) < TOLERANCE[torch.float16]


def full_size(dtype: torch.dtype, rows: int, device=CPU):
    """Every kernel launched and its twin computed at the published models' shapes, one pair after the other."""
    dim, ff = 1024, 4096
    x, wide = (torch.randn(rows, 1, n, device=device).to(dtype) for n in (dim, ff))
    shapes = ("rms", None, 3 * dim), ("rms", swiglu, 2 * ff), ("layer", None, 3 * dim), ("layer", gelu, ff)
    for kind, act, n in shapes:
        norm = some_norm(kind, dim).to(device, dtype)
        product = nn.Linear(dim, n, bias=kind == "layer", device=device, dtype=dtype)
        if not linear.supports(x, product, norm):
            continue
        yield lambda n=norm, p=product, a=act: [(f(x, n, p, a),) for f in (linear.norm_linear, norm_linear)]
    for given, bias in ((x, False), (wide, True)):
        product = nn.Linear(given.shape[-1], dim, bias=bias, device=device, dtype=dtype)
        if not linear.supports(given, product):
            continue
        yield lambda g=given, p=product: [(f(g, p, x),) for f in (linear.linear_add, linear_add)]
    for turn in (True, False):
        for live in (40, 1000):
            positions = [(live - 1) * (i + 1) // rows for i in range(rows)]
            yield lambda p=positions, v=live, t=turn: sides(p, v, 16, 64, t, dtype, device)
    given = some_draw(8194, device)
    for filters, turbo in ((FILTERS[0], False), (FILTERS[1], False), (FILTERS[3], True)):
        yield lambda f=filters, t=turbo: [(draw(*given, f, t),) for draw in (sampling.sample, drawn_plainly)]
    if dtype != torch.float32:
        frames = some_frames(2, 500, 8, 64, dtype, device)
        yield lambda: [(f(*frames, 8),) for f in (flash.attend_all, attend_all)]
    added = some_sum(2, 500, 256, dtype, device)
    yield lambda: [tuple(t.to(dtype) for t in f(*added)) for f in (add_norm.add_norm, estimator.add_norm)]
    mel = torch.randn(1, 256, 1, 500, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
    yield lambda: [(f(mel, mel[0, :, 0, 0]),) for f in (snake.snake, hift.snake)]


@pytest.mark.parametrize(
    ("target", "dtype"),
    [(80, torch.float16), (90, torch.float32), *((target, torch.bfloat16) for target in SHARED)], ids=str,
)  # fmt: skip
@torch.inference_mode()
def test_kernels_compile(target, dtype, monkeypatch):
    """Checks what the interpreter does not: types, layouts, shared memory. Nothing is run."""
    problem = compile_launches(monkeypatch, target, [linear, attention, flash, add_norm, sampling, snake])
    if problem:
        pytest.skip(problem)
    for rows in (2, 16):
        for both in full_size(dtype, rows, torch.device("meta")):  # their twins too compute nothing
            both()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 16])
@torch.inference_mode()
def test_kernels_on_a_device(rows, dtype):
    for both in full_size(dtype, rows, torch.device("cuda")):
        assert max(map(difference, *both())) < trial.TOLERANCE[dtype]
