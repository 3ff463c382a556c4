"""Packed linears against the float32 ones they stand for."""

import copy
from types import SimpleNamespace

import pytest
import torch
from t3_pairs import random_t3, text, voice
from token_runs import draw, engine_of
from torch import nn

from chatterbox_opt.engine.noise import RequestNoise
from chatterbox_opt.engine.quantize import (
    FewRowsLinear,
    HalfLinear,
    Int4Linear,
    Int8Linear,
    Int8WeightLinear,
    in_fixed_range,
    in_pinned_range,
    packs_float16,
    prepare_linears,
    unpacked_product,
)
from chatterbox_opt.engine.request import Utterance
from chatterbox_opt.options import SamplingOptions

X86 = pytest.mark.skipif(not packs_float16(torch.device("cpu")), reason="torch packs float16 on x86 only")
HALF = pytest.param(HalfLinear, 1e-3, marks=X86)
KINDS = [(FewRowsLinear, 1e-5), (Int8Linear, 0.03), (Int4Linear, 0.15), HALF]


@pytest.mark.parametrize(("kind", "tolerance"), KINDS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 64), (2, 1, 64), (5, 64), (3, 40, 64)])
@pytest.mark.parametrize("width", [96, 256])
@torch.inference_mode()
def test_close_to_float32(kind, tolerance, bias, shape, width):
    linear = nn.Linear(64, width, bias=bias)
    x = torch.randn(shape)
    wanted = linear(x)
    got = kind(copy.deepcopy(linear))(x)
    assert got.shape == wanted.shape
    assert got.dtype == wanted.dtype
    assert (got - wanted).abs().max() < tolerance * wanted.abs().max()


@torch.inference_mode()
def test_int8_as_torch_is_built_for_macos(monkeypatch):
    """With qnnpack, and with nothing chosen."""
    real = torch.backends.quantized
    if "qnnpack" not in real.supported_engines:
        pytest.skip("this build of torch has no qnnpack")
    before, linear, x = real.engine, nn.Linear(64, 96), torch.randn(3, 64)
    unset = SimpleNamespace(engine="none")
    monkeypatch.setattr(torch.backends, "quantized", unset)
    Int8Linear(copy.deepcopy(linear))
    assert unset.engine == "qnnpack"
    try:
        real.engine = unset.engine
        got = Int8Linear(copy.deepcopy(linear))(x)
    finally:
        real.engine = before
    assert (got - linear(x)).abs().max() < 0.03 * linear(x).abs().max()


@torch.inference_mode()
def test_int8_without_a_product_of_its_own():
    made, x = Int8WeightLinear(nn.Linear(64, 96)), torch.randn(3, 64)
    packed = made(x)
    made.product = unpacked_product
    assert (made(x) - packed).abs().max() < 0.02 * packed.abs().max()


@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
@torch.inference_mode()
def test_a_row_does_not_see_its_neighbours(kind):
    linear = kind(nn.Linear(64, 96))
    x = torch.randn(1, 64)
    for neighbour in (100.0, 1e-3, -7.0):
        beside = linear(torch.cat([x, neighbour * torch.randn(3, 64)]))[:1]
        assert torch.equal(beside, linear(x))


@X86
@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_both_ways_to_give_a_range(bias):
    linear, x = nn.Linear(64, 96, bias=bias), torch.randn(5, 64) * torch.logspace(-3, 3, 5)[:, None]
    packed, wanted = Int8Linear(copy.deepcopy(linear)), linear(x)
    assert packed.product is in_fixed_range
    for product in (in_fixed_range, in_pinned_range):
        packed.product = product
        got = packed(x)
        assert ((got - wanted).abs().amax(1) < 0.03 * wanted.abs().amax(1)).all()
        assert torch.equal(packed(x[2:3]), got[2:3])
        assert not packed(torch.zeros(1, 64)).sub(0 if linear.bias is None else linear.bias).any()


@X86
@pytest.mark.parametrize("rows", [1, 2, 5, 40])
@torch.inference_mode()
def test_a_float16_row_sees_only_how_many_neighbours_it_has(rows):
    """Their number changes the order of its sums, as in float32."""
    linear, x = HalfLinear(nn.Linear(64, 96)), torch.randn(1, 64)
    alone = linear(x)
    beside = [linear(torch.cat([x, scale * torch.randn(rows, 64)]))[:1] for scale in (100.0, 1e-3, -7.0)]
    assert torch.equal(beside[0], beside[1])
    assert torch.equal(beside[0], beside[2])
    assert (beside[0] - alone).abs().max() < 1e-5 * alone.abs().max()


@pytest.mark.parametrize("quantize", [None, "int8", "int4", pytest.param("float16", marks=X86)])
@pytest.mark.parametrize("family", ["tts", "turbo"])
@torch.inference_mode()
def test_whole_model(family, quantize):
    t3 = random_t3(family)
    config = t3.config
    x = torch.randn(2, 30, config.dim)
    positions = torch.arange(30)[None]
    wanted = t3.logits(t3(x, positions))
    half = quantize == "float16"
    prepare_linears(t3, None if half else quantize, few_rows=True, half=half)
    assert not any(type(m) is nn.Linear for m in [*t3.tfmr.modules(), t3.speech_head])
    got = t3.logits(t3(x, positions))
    error = (got - wanted).std() / wanted.std()
    assert error < {None: 1e-4, "int8": 0.2, "int4": 0.6, "float16": 5e-3}[quantize]
    assert quantize is None or error > 0

    def requests():
        sampling = SamplingOptions(max_new_tokens=12, cfg_weight=0.0 if config.is_gpt else 0.5)
        noises = (RequestNoise(torch.device("cpu"), i) for i in range(3))
        return [Utterance(text(config, 9 + i), voice(config, i), sampling, noise=n) for i, n in enumerate(noises)]

    engine = engine_of(t3)
    together = [r.tokens for r in draw(engine, requests())]
    assert together == [draw(engine, [request])[0].tokens for request in requests()]
