"""Steps of T3 and of the flow as TorchScript: equal to eager steps, which replace traces that fail."""

import copy
import dataclasses
import logging
import warnings

import pytest
import torch
from flow_pairs import random_flow, tokens, voice
from threads import in_threads
from token_runs import CPU, EXACT, draw, engine_of, mixed, request, tokens_of

from chatterbox_opt.engine import mel, traced
from chatterbox_opt.engine.kernels import cpu
from chatterbox_opt.engine.mel import MelJob, MelRunner
from chatterbox_opt.engine.noise import RequestNoise
from chatterbox_opt.engine.own_rows import Run

pytestmark = pytest.mark.kernels
TRACED = EXACT.replace(compile="trace")


@pytest.fixture(autouse=True)
def at_the_second_use(monkeypatch):
    monkeypatch.setattr(traced, "USES", 1)


def shapes_of(engine):
    return set(engine.tokens.step.traced.keys)


@pytest.mark.parametrize("family", ["tts", "turbo"])
@pytest.mark.parametrize(
    "options", [{}, dict(few_rows=True), dict(quantize="int8"), dict(dtype="float16"), dict(slots=2)], ids=str
)
def test_a_trace_draws_what_eager_steps_draw(family, options, llama, gpt):
    """Requests with other settings and lengths join and leave: each shape of the batch has its own trace."""
    t3 = gpt if family == "turbo" else llama
    wanted = tokens_of(copy.deepcopy(t3), mixed(t3.config), EXACT.replace(**options))
    engine = engine_of(copy.deepcopy(t3), TRACED.replace(**options))
    assert [r.tokens for r in draw(engine, mixed(t3.config))] == wanted
    shapes = shapes_of(engine)
    assert len(shapes) > 1
    assert max(sum(len(run.widths) for run in runs) for runs in shapes) == options.get("slots", 6)
    assert [r.tokens for r in draw(engine, mixed(t3.config))] == wanted


def test_bfloat16_is_traced_to_the_last_bit(llama):
    t3 = copy.deepcopy(llama).to(torch.bfloat16)
    wanted = tokens_of(copy.deepcopy(t3), mixed(t3.config))
    engine = engine_of(t3, TRACED)
    assert [r.tokens for r in draw(engine, mixed(t3.config))] == wanted
    assert shapes_of(engine)


def test_rarely_used_shapes_are_not_traced(llama, monkeypatch):
    monkeypatch.setattr(traced, "USES", 20)
    engine = engine_of(llama, TRACED)
    draw(engine, [request(llama.config, max_new_tokens=10)])
    assert not shapes_of(engine)
    draw(engine, [request(llama.config, max_new_tokens=20)])
    assert shapes_of(engine) == {(Run(False, (2,)),)}


@pytest.mark.parametrize("batch", [1, 3])
def test_a_warm_up_traces_so_many_utterances(batch, llama, gpt):
    """Of one voice."""

    def of_one_voice():
        requests = [request(t3.config, seed=i) for i in range(batch)]
        return [dataclasses.replace(one, cond=cond) for one in requests]

    for t3, width, shared in ((llama, 2, False), (gpt, 1, True)):
        cond = request(t3.config).cond
        wanted = tokens_of(t3, of_one_voice())
        engine = engine_of(t3, TRACED.replace(prefix_cache=True))
        engine.tokens.warmup(batch)
        warm = shapes_of(engine)
        assert warm == {(Run(shared, (width,) * n),) for n in range(1, batch + 1)}
        assert [r.tokens for r in draw(engine, of_one_voice())] == wanted
        assert shapes_of(engine) == warm


def test_the_oldest_trace_makes_room(llama, monkeypatch):
    monkeypatch.setattr(traced, "MOST", 1)
    engine = engine_of(llama, TRACED)
    draw(engine, [request(llama.config, max_new_tokens=10)])
    draw(engine, [request(llama.config, max_new_tokens=10, cfg_weight=0.0)])
    assert shapes_of(engine) == {(Run(False, (1,)),)}


def failing(*args, **how):
    raise RuntimeError("no such thing as a trace\nand more")


def rounding_otherwise(step, inputs, **how):
    return lambda *inputs: step(*inputs) + 1e-6


@pytest.mark.parametrize(("broken", "reason"), [(failing, "no such thing"), (rounding_otherwise, "does not compute")])
def test_without_a_good_trace_steps_stay_eager(broken, reason, llama, monkeypatch, caplog):
    wanted = tokens_of(llama, mixed(llama.config))
    monkeypatch.setattr(torch.jit, "trace", broken)
    engine = engine_of(llama, TRACED)
    with caplog.at_level(logging.WARNING):
        assert [r.tokens for r in draw(engine, mixed(llama.config))] == wanted
        assert [r.tokens for r in draw(engine, mixed(llama.config))] == wanted
    (told,) = caplog.messages
    assert reason in told
    assert "\n" not in told


def test_an_error_of_the_function_does_not_stop_tracing(llama):
    step = traced.Traced("a step", llama, on=True)

    def fails(x):
        raise MemoryError("no room")

    step(1, torch.sin, torch.ones(2))
    with pytest.raises(MemoryError):
        step(2, fails, torch.ones(2))
    with pytest.raises(MemoryError):
        step(2, fails, torch.ones(2))  # the second use, which is to be traced
    assert step.on
    assert torch.equal(step(1, torch.sin, torch.tensor([0.5, torch.nan])).isnan(), torch.tensor([False, True]))
    assert step.keys == [1]


def test_warning_filters_of_other_threads_stay(llama, monkeypatch):
    """They belong to the process: what another thread sets while this one traces is not to be undone."""
    trace, step = torch.jit.trace, traced.Traced("a step", llama, on=True)

    def while_another_sets_a_filter(*args, **how):
        in_threads(lambda: warnings.filterwarnings("ignore", message="theirs"))
        return trace(*args, **how)

    monkeypatch.setattr(torch.jit, "trace", while_another_sets_a_filter)
    step.prepare(1, torch.sin, torch.ones(2))
    assert step.keys == [1]
    with warnings.catch_warnings(record=True) as told:
        warnings.warn("theirs", stacklevel=1)
    assert not told


def test_warnings_that_are_errors_for_a_while_do_not_end_tracing(llama, monkeypatch):
    trace, step = torch.jit.trace, traced.Traced("a step", llama, on=True)

    def while_another_makes_errors_of_them(*args, **how):
        in_threads(lambda: warnings.simplefilter("error"))
        return trace(*args, **how)

    with warnings.catch_warnings(), monkeypatch.context() as patch:
        patch.setattr(torch.jit, "trace", while_another_makes_errors_of_them)
        step.prepare(1, torch.sin, torch.ones(2))
        assert step.keys == [], "or nothing was shown"
    for _ in range(2):
        step(1, torch.sin, torch.ones(2))
    assert step.keys == [1]


def test_tracing_warns_of_nothing_that_a_program_could_change(llama):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = engine_of(llama, TRACED.replace(quantize="int8"))
        draw(engine, [request(llama.config, max_new_tokens=10)])
    assert shapes_of(engine)


def test_counts_of_rare_shapes_are_bounded(llama, monkeypatch):
    monkeypatch.setattr(traced, "MOST_COUNTED", 10)
    step = traced.Traced("a step", llama, on=True)
    for key in range(100):
        step(key, torch.sin, torch.ones(2))
    assert len(step.uses) <= 10


def test_the_programs_own_torchscript_keeps_its_optimizer(llama):
    def optimizes():
        return torch._C._get_graph_executor_optimize()

    seen = [optimizes()]
    engine = engine_of(llama, TRACED)
    draw(engine, [request(llama.config, max_new_tokens=10)], progress=lambda *how: seen.append(optimizes()))
    assert shapes_of(engine)
    assert len(seen) > 5
    assert set(seen) == {True}


# ---- the flow --------------------------------------------------------------------------------------


def mels(runner, lengths):
    """In three steps: an eager one, one that is traced, and one that is run from its trace."""
    return [runner.render([MelJob(tokens(n, n), voice(25, n), RequestNoise(CPU, n))], 3)[0] for n in lengths]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("family", ["tts", "turbo"])
@pytest.mark.parametrize("options", [{}, dict(s3gen_dtype="bfloat16"), dict(flow_int8=True)], ids=str)
def test_a_trace_renders_what_eager_steps_render(family, options, threads):
    """At any length, with one trace, and one more for those that are padded."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        runner = MelRunner(random_flow(family), TRACED.replace(**options))
        eager = MelRunner(random_flow(family), EXACT.replace(**options))
        lengths = (20, 3, 71, 1, 140)
        for got, wanted in zip(mels(runner, lengths), mels(eager, lengths)):
            assert torch.equal(got, wanted)
        both = [False, True] if runner.half != torch.float32 else [True]  # 71 tokens and the prompt need no padding
        assert sorted(runner.traced.keys) == [(1, threads, full) for full in both]
    finally:
        torch.set_num_threads(before)


def test_a_large_flow_is_not_traced(monkeypatch):
    monkeypatch.setattr(mel, "SMALL", 1000)
    runner = MelRunner(random_flow(), TRACED)
    mels(runner, (20, 9))
    assert not runner.traced.keys


def test_unsupported_steps_run_eagerly(monkeypatch):
    """Long utterances, whose attention goes by parts; steps without guidance."""
    for module in (mel, cpu):
        monkeypatch.setattr(module, "SCORES", 150**2)
    runner, eager = (MelRunner(random_flow(), o.replace(s3gen_dtype="bfloat16")) for o in (TRACED, EXACT))
    assert all(map(torch.equal, mels(runner, (24, 80, 24)), mels(eager, (24, 80, 24))))
    assert len(runner.traced.keys) == 1
    runner, eager = (MelRunner(random_flow(), o.replace(cfg_off_last=10)) for o in (TRACED, EXACT))
    assert all(map(torch.equal, mels(runner, (20, 9)), mels(eager, (20, 9))))
    assert not runner.traced.keys


def test_a_default_dtype_that_is_set_later_changes_no_mel():
    """What a trace computes from sizes would have the default of the moment; a program may set that at any time."""
    runner = MelRunner(random_flow(), TRACED.replace(s3gen_dtype="bfloat16"))
    jobs = [MelJob(tokens(20), voice(25), RequestNoise(CPU, 1)) for _ in range(3)]
    runner.render(jobs[:1], 3)
    assert runner.traced.keys
    (wanted,) = runner.render(jobs[1:2], 3)
    torch.set_default_dtype(torch.bfloat16)
    try:
        (got,) = runner.render(jobs[2:], 3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(got, wanted)
