"""Trials of kernels: which are used and which are not, and a whole decode step with all of them."""

import copy
import logging

import pytest
import torch
from t3_pairs import random_t3
from token_runs import CPU, EXACT, draw, engine_of, request

from chatterbox_opt.engine.cache import Decode
from chatterbox_opt.engine.kernels import attention, linear, sampling, trial
from chatterbox_opt.engine.kernels.step import StepKernels
from chatterbox_opt.engine.tokens import TokenRunner
from chatterbox_opt.models import layers
from chatterbox_opt.options import KERNELS, EngineOptions

RIGHT = torch.arange(8.0)


@pytest.fixture(autouse=True)
def _no_verdicts(monkeypatch):
    monkeypatch.setattr(trial, "_verdicts", {})


def accepted(kernel, seconds=(1.0, 2.0), shape="8") -> bool:
    """`seconds`: what kernel and twin take."""

    def timer(run, device):
        assert device == CPU
        return seconds[0 if run is kernel else 1]

    return trial.accepts("some", shape, kernel, lambda i: (RIGHT,), device=CPU, tolerance=1e-3, timer=timer)


def test_a_fast_and_correct_kernel_is_used(caplog):
    caplog.set_level(logging.INFO)
    assert accepted(lambda i: (RIGHT * 1.0001,))
    assert accepted(lambda i: (RIGHT,), (1.0, 1.0), "as quick")
    assert not caplog.records


def raising(_):
    raise RuntimeError("ptxas says no\nand more")


@pytest.mark.parametrize(
    ("kernel", "why"),
    [
        (raising, "RuntimeError: ptxas says no"),
        (lambda i: (RIGHT + 1,), "wrong by 0.14, 0.001 is allowed"),
        (lambda i: (RIGHT * torch.nan,), "wrong by nan"),
        (lambda i: (RIGHT[1:],), "came out, not"),
        (lambda i: (RIGHT.double(),), "came out, not"),
    ],
    ids=["raises", "wrong", "nan", "shape", "dtype"],
)
def test_a_wrong_or_failing_kernel_is_named_once(kernel, why, caplog):
    for _ in range(2):
        assert not accepted(kernel)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "kernel some (8)" in record.getMessage()
    assert why in record.getMessage()


def test_a_slower_kernel_stays_out_quietly(caplog):
    caplog.set_level(logging.DEBUG, "chatterbox_opt")
    assert not accepted(lambda i: (RIGHT,), (3e-6, 2e-6))
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert "3.0 us, plain torch 2.0 us" in record.getMessage()


def test_a_timer_that_fails_is_a_kernel_that_fails(caplog):
    def broken(run, device):
        raise RuntimeError("capture failed")

    assert not trial.accepts("some", "8", lambda i: (RIGHT,), lambda i: (RIGHT,), CPU, 0.0, broken)
    assert "capture failed" in caplog.text


def test_each_shape_is_tried_once():
    calls = []

    def kernel(i):
        calls.append(i)
        return (RIGHT,)

    for shape in ("1 row", "2 rows", "1 row"):
        assert accepted(kernel, shape=shape)
    assert len(calls) == 2


def test_options():
    assert all(EngineOptions().wants(name) for name in KERNELS)
    assert not any(EngineOptions.exact().wants(name) for name in KERNELS)
    some = EngineOptions(kernels=("attention", "snake"))
    assert [name for name in KERNELS if some.wants(name)] == ["attention", "snake"]
    assert not any(EngineOptions(kernels=()).wants(name) for name in KERNELS)
    for wrong in (("atention",), ["attention"], "attention", None, 1):
        with pytest.raises(ValueError, match=r"kernels=.*norm_linear, attention"):
            EngineOptions(kernels=wrong)


# ---- the decode step -----------------------------------------------------------------------------


def eight_tokens(config, n=12, seed=0, **sampling):
    return request(config, n, seed, seed, text_seed=seed, **{"max_new_tokens": 8, **sampling})


def with_kernels(t3, wanted=KERNELS, judge=lambda *args, **named: True, options=EXACT):
    """An engine whose rows lie in one cache, as on a GPU, with these kernels in its step."""
    engine = engine_of(copy.deepcopy(t3), options)
    engine.tokens.step.kernels = StepKernels(engine.tokens.t3, wanted, judge=judge)
    return engine


@pytest.fixture
def shared(monkeypatch):
    monkeypatch.setattr(TokenRunner, "shared", True)


@pytest.fixture
def counted(monkeypatch, shared):
    """How often each kernel was called, in the interpreter."""
    pytest.importorskip("triton")
    from kernel_runs import interpret

    interpret(monkeypatch)
    monkeypatch.setattr(linear, "adding_tile", lambda k: (64, 4))  # the interpreter's cost is per program
    counts = dict.fromkeys(KERNELS[:4], 0)
    places = (linear, "norm_linear"), (attention, "decode"), (linear, "linear_add"), (sampling, "sample")
    def counting(name, plain):
        def count(*args, **named):
            counts[name] += 1
            return plain(*args, **named)

        return count

    for name, (module, function) in zip(counts, places):
        monkeypatch.setattr(module, function, counting(name, getattr(module, function)))
    return counts


@pytest.mark.parametrize("family", ["tts", "turbo"])
def test_tokens_equal_those_of_the_plain_step(family, counted):
    t3 = random_t3(family)
    for settings in (dict(temperature=0.0), dict(seed=3)):
        (plain,) = draw(engine_of(t3), [eight_tokens(t3.config, **settings)])
        (got,) = draw(with_kernels(t3), [eight_tokens(t3.config, **settings)])
        assert got.tokens == plain.tokens
        assert len(plain.tokens) == 8
    steps = 2 * 8 * t3.config.layers
    # a decode step has two products of each kind per layer; the first token comes from the prompt
    assert counted["attention"] >= steps - 2 * t3.config.layers
    assert counted["norm_linear"] == counted["linear_add"] == 2 * counted["attention"]
    assert counted["sampling"] > 0


@pytest.mark.parametrize("family", ["tts", "turbo"])
@torch.inference_mode()
def test_step_of_rows_at_different_positions(family, counted):
    """Logits within a tight tolerance, each row at its own position."""
    t3 = random_t3(family)
    made = with_kernels(t3).tokens
    made.prefill([eight_tokens(t3.config, 5, 1), eight_tokens(t3.config, 20, 2)])
    rows, live = made.slots.rows, max(slot.position for slot in made.live) + 1
    made.cache.clear(live)
    at = made.slots.position[:rows]
    assert len(set(at.tolist())) == 2
    x = torch.randn(rows, 1, t3.config.dim)
    mask = (torch.arange(live) <= at[:, None])[:, None, None]
    wanted = t3(x, at[:, None], Decode(copy.deepcopy(made.cache), at, live, mask))
    assert not counted["norm_linear"]
    kernel = made.step.kernels.attention(rows)
    got = made.t3(x, at[:, None], Decode(made.cache, at, live, kernel=kernel), made.step.kernels.operations)
    assert counted["norm_linear"] == 2 * t3.config.layers
    assert trial.difference(t3.logits(got), t3.logits(wanted)) < 1e-5


def test_only_wanted_kernels_that_passed_run(counted):
    t3 = random_t3("tts")
    tried = []

    def judge(name, shape, *both, device, tolerance):
        tried.append((name, shape))
        return name == "attention"

    made = with_kernels(t3, ("norm_linear", "attention"), judge)
    draw(made, [eight_tokens(t3.config, max_new_tokens=2)])
    assert {name for name, _ in tried} == {"norm_linear", "attention"}
    assert len(tried) == len(set(tried)), "once a shape"
    assert counted["attention"]
    assert not counted["norm_linear"] + counted["linear_add"] + counted["sampling"]
    again = TokenRunner(made.tokens.t3, EXACT).step.kernels
    assert again.operations == again.plain, "another runner of the same networks has none of it"


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_every_kernel_passes_its_own_trial(default, counted):
    """The real trials, without a device to time them on, whatever the default dtype of the process."""
    for family in ("tts", "turbo"):
        t3 = random_t3(family)
        judge = lambda *args, **named: trial.accepts(*args, **named, timer=lambda run, device: 0.0)  # noqa: E731
        kernels = with_kernels(t3, judge=judge).tokens.step.kernels
        torch.set_default_dtype(default)
        try:
            kernels.fit(2)
        finally:
            torch.set_default_dtype(torch.float32)
        names = {key[0] for key in kernels.good}
        assert names == set(KERNELS[:4])
        assert len([key for key in kernels.good if key[0] == "sampling"]) == (2 if family == "turbo" else 4)


def test_a_product_is_not_trusted_with_a_norm_or_an_activation_that_was_not_tried(counted):
    """Each is a kernel of its own, though their weights may have one shape."""
    t3, shapes = random_t3("tts"), []

    def judge(name, shape, *both, device, tolerance):
        shapes.append(shape)
        return True

    made = with_kernels(t3, ("norm_linear",), judge).tokens
    kernels, block = made.step.kernels, made.t3.tfmr.layers[0]
    kernels.fit(1)
    x, norm, product = torch.randn(1, 1, t3.config.dim), block.input_layernorm, block.self_attn.qkv_proj
    kernels.norm_linear(x, norm, product)
    assert counted["norm_linear"] == 1
    kernels.norm_linear(x, norm, product, layers.gelu)
    assert counted["norm_linear"] == 1
    assert any("RMSNorm, swiglu" in shape for shape in shapes)


def test_quantised_linears_are_left_to_their_twin(counted):
    t3 = random_t3("tts")
    draw(with_kernels(t3, options=EXACT.replace(few_rows=True)), [eight_tokens(t3.config, max_new_tokens=2)])
    assert counted["attention"]
    assert not counted["norm_linear"] + counted["linear_add"]
