"""Packed linear layers against the float32 ones."""

import copy
import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from t3_pairs import random_t3, text, voice
from token_runs import draw, engine_of
from torch import nn
from torch.nn import functional as F

from chatterbox_opt.engine.digits import half_digits
from chatterbox_opt.engine.linears import prepare_linears
from chatterbox_opt.engine.noise import RequestNoise
from chatterbox_opt.engine.quantize import (
    FIXED,
    FewRowsLinear,
    FixedRowsLinear,
    Float16WeightLinear,
    Int4Linear,
    Int8Linear,
    Int8WeightLinear,
    in_fixed_range,
    in_pinned_range,
    packs_float16,
    unpacked_product,
)
from chatterbox_opt.engine.request import Utterance
from chatterbox_opt.engine.row_counts import MOST, least_rows
from chatterbox_opt.options import SamplingOptions

pytestmark = pytest.mark.kernels
X86 = pytest.mark.skipif(not packs_float16(torch.device("cpu")), reason="torch packs float16 on x86 only")
HALF = pytest.param(Float16WeightLinear, 1e-3, marks=X86)
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
    """With qnnpack, and without any backend chosen."""
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


def pinned_int8(linear):
    made = Int8Linear(linear)
    made.product = in_pinned_range
    return made


def fixed_rows(linear, dtype):
    return FixedRowsLinear(linear.to(dtype))


BF16, FP16 = partial(fixed_rows, dtype=torch.bfloat16), partial(fixed_rows, dtype=torch.float16)
# Each form of a product on a CPU -> by how much a row may differ when others stand beside it, of the largest result.
COMPANY = {
    "bfloat16": (BF16, 0), "float16": (FP16, 0), "int8": (Int8Linear, 0), "int8, pinned range": (pinned_int8, 0),
    "int4": (Int4Linear, 0), "float32": (nn.Sequential, 1e-5), "float32, few rows": (FewRowsLinear, 1e-5),
    "float16 weights": (Float16WeightLinear, 1e-5),
}
FORMS = [pytest.param(name, marks=X86 if name == "float16 weights" else ()) for name in COMPANY]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(64, 192), (1024, 256), (192, 1040), (4096, 128)])
@pytest.mark.parametrize("form", FORMS)
@torch.inference_mode()
def test_a_row_is_the_same_in_any_batch(form, shape, threads):
    """With any number of other rows of any content, at any place among them."""
    torch.set_num_threads(threads)
    kind, tolerance = COMPANY[form]
    linear, x = kind(nn.Linear(*shape)), torch.randn(40, shape[0])
    x = x.to(getattr(linear, "weight", x).dtype if form in ("bfloat16", "float16") else x.dtype)
    alone = torch.cat([linear(x[i : i + 1]) for i in range(40)])
    for rows in (1, 2, 3, 5, 8, 9, 17, 40):
        order = torch.randperm(40)[:rows]
        got = linear(x[order])
        assert (got - alone[order]).abs().max() <= tolerance * alone.abs().max()
        assert torch.equal(linear(x[order].unsqueeze(1)).squeeze(1), got)
        for scale in (100.0, 1e-3, 0.0):
            others = torch.cat([x[order[:1]], scale * torch.randn(rows, shape[0]).to(x.dtype)])[:rows]
            assert torch.equal(linear(others)[0], got[0])


def by_number_of_rows(x, weight, bias=None, product=F.linear):
    """A product whose sums depend on the number of rows, as those of bf16 units may in the last bits."""
    return product(x, weight, bias) * (1 + x.shape[:-1].numel() / 64)


def few_apart(x, weight, bias=None, product=F.linear):
    """A product with a separate kernel for less than three rows."""
    return product(x, weight, bias) * (2 if x.shape[:-1].numel() < 3 else 1)


@pytest.fixture
def linear_replaced(monkeypatch):
    """Replaces torch's product, and clears what is known of its rows."""

    def replace(product):
        least_rows.cache_clear()
        monkeypatch.setattr(F, "linear", product)

    yield replace
    monkeypatch.undo()
    least_rows.cache_clear()


@pytest.mark.parametrize(("product", "least"), [(few_apart, 3), (by_number_of_rows, MOST)])
def test_row_counts_with_the_same_order_of_sums_are_found(product, least, linear_replaced):
    linear_replaced(product)
    assert least_rows(96, 64, torch.bfloat16, False, 1) == least
    assert least_rows(95, 63, torch.bfloat16, True, 1) == least


@torch.inference_mode()
def test_a_row_is_joined_by_zeros_only_where_its_bits_depend_on_it(linear_replaced):
    shapes = []

    def watched(x, weight, bias=None):
        shapes.append(x.shape[0])
        return few_apart(x, weight, bias)

    linear, x = BF16(nn.Linear(64, 96)), torch.randn(2 * MOST + 1, 64).bfloat16()
    linear_replaced(watched)
    whole = linear(x)
    for rows, multiplied in ((1, [3]), (3, [3]), (5, [5]), (MOST, [MOST]), (2 * MOST + 1, [MOST, MOST, 3])):
        shapes.clear()
        assert torch.equal(linear(x[:rows]), whole[:rows])
        assert shapes == multiplied


@pytest.mark.parametrize("form", ["bfloat16", "float16"])
@torch.inference_mode()
def test_half_precision_multiplies_a_fixed_number_of_rows(form, linear_replaced):
    linear = COMPANY[form][0](nn.Linear(64, 96))
    x = torch.randn(40, 64).to(linear.weight.dtype)
    linear_replaced(by_number_of_rows)
    alone = torch.cat([linear(x[i : i + 1]) for i in range(40)])
    assert torch.equal(alone, linear(x))
    assert torch.equal(linear(x[:3, None]), alone[:3, None])
    assert torch.equal(alone[:FIXED], by_number_of_rows(x[:FIXED], linear.weight, linear.bias))
    sequence = x[None]
    assert torch.equal(linear(sequence), by_number_of_rows(sequence, linear.weight, linear.bias)), "it stays whole"


ROUNDED = [(dtype, quantize) for dtype in ("bfloat16", "float16") for quantize in (None, "int8", "int4")]
ROUNDED += [("float32", "int8"), ("float32", "int4")]


@pytest.mark.parametrize(("dtype", "quantize"), ROUNDED)
@pytest.mark.parametrize("family", ["tts", "turbo"])
@torch.inference_mode()
def test_a_step_of_t3_is_the_same_in_any_batch(family, dtype, quantize, linear_replaced):
    """To the last bit wherever one is rounded up: every product, norm, rotation and activation. Each row attends to
    itself. A head in float32 is left out: nothing rounds what it returns."""
    t3 = random_t3(family).to(getattr(torch, dtype))
    prepare_linears(t3, quantize, few_rows=True)
    linear_replaced(by_number_of_rows)
    x, positions = torch.randn(19, 1, t3.config.dim).to(t3.speech_emb.weight.dtype), torch.arange(19)[:, None]

    def step(rows):
        hidden = t3(x[rows], positions[rows])[:, 0]
        return hidden if dtype == "float32" else t3.logits(hidden)

    alone = torch.cat([step(slice(i, i + 1)) for i in range(19)])
    for rows in (slice(0, 2), slice(5, 10), slice(0, 19)):
        assert torch.equal(step(rows), alone[rows])


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
@pytest.mark.parametrize("packed_before", [False, True], ids=["", "from a packed folder"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@torch.inference_mode()
def test_weights_that_are_no_numbers_stay_none_in_float16(bad, packed_before, monkeypatch):
    """So that a broken checkpoint is refused, and does not speak nonsense. Large numbers are clamped."""
    linear, x = nn.Linear(64, 96), torch.randn(3, 64)
    linear.weight[5, 7] = 1e6
    assert Float16WeightLinear(linear)(x).isfinite().all()
    linear.weight[5, 8] = bad
    if packed_before:
        kept = half_digits(linear.weight)
        monkeypatch.setattr("chatterbox_opt.engine.quantize.digits_of", lambda *how: kept)
    assert not Float16WeightLinear(linear)(x).isfinite().any()


def test_loading_in_int8_leaves_warning_filters_of_other_threads(monkeypatch):
    """They belong to the process: what another thread sets while this one loads is not to be undone."""

    class Meanwhile(Int8Linear):
        def __init__(self, linear):
            warnings.filterwarnings("ignore", message="theirs")
            super().__init__(linear)

    monkeypatch.setattr("chatterbox_opt.engine.linears.Int8Linear", Meanwhile)
    prepare_linears(random_t3("tts"), "int8", few_rows=True)
    with warnings.catch_warnings(record=True) as told:
        warnings.warn("theirs", stacklevel=1)
    assert not told


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", [Int8Linear, pinned_int8])
@torch.inference_mode()
def test_int8_keeps_nan_and_infinity_in_their_row(kind, bad):
    """Such a row ends as broken. Zeros are finite."""
    linear, x = kind(nn.Linear(64, 96)), torch.randn(4, 64)
    x[3] = 0
    wanted = linear(x)
    x[1, 5] = bad
    got = linear(x)
    assert not got[1].isfinite().any()
    assert torch.equal(got[[0, 2, 3]], wanted[[0, 2, 3]])
    assert torch.equal(got[3], linear.bias)


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
