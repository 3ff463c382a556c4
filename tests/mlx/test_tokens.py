"""MLX draws torch's tokens at the same seed; batches are tested with the engine (tests/engine)."""

import copy
import dataclasses
import shutil

import pytest
import torch
from t3_pairs import random_t3
from threads import in_threads
from token_runs import CPU, EXACT, NO_MLX, draw, engine_of, mixed, request, tokens_of

from chatterbox_opt.engine.engine import Engine
from chatterbox_opt.engine.request import Call

if NO_MLX:
    pytest.skip(NO_MLX, allow_module_level=True)
import mlx.core as mx
from mlx_pairs import of_torch

from chatterbox_opt.mlx.tokens import MlxTokenRunner

LLAMA = [{}, dict(cfg_weight=0.0), dict(top_p=0.8), dict(min_p=0.2, top_p=0.9, cfg_weight=1.0), dict(temperature=0.0),
         dict(repetition_penalty=2.0), dict(repetition_penalty=1.0, temperature=1.0), dict(top_k=30, min_p=0.0)]
GPT = [{}, dict(top_p=0.8), dict(top_k=50), dict(repetition_penalty=2.0), dict(temperature=1.0), dict(temperature=0.0)]


@pytest.mark.parametrize("family", ["tts", "mtl", "turbo", "nano"])
def test_torchs_tokens_at_the_same_seed(family):
    t3 = random_t3(family)
    ours = of_torch(t3)
    for settings in GPT if t3.config.is_gpt else LLAMA:
        (wanted,), (got,) = ([request(t3.config, seed=2, **settings)] for _ in range(2))
        draw(engine_of(t3), [wanted])
        draw(engine_of(ours), [got])
        assert got.tokens == wanted.tokens, settings
        assert len(got.tokens) >= 64 or got.stopped == "eos"
        assert torch.equal(got.noise.normal((3,)), wanted.noise.normal((3,))), "the generator stands where torch's does"


@pytest.mark.parametrize("family", ["tts", "turbo"])
@pytest.mark.parametrize("poll", [1, 8])
def test_a_batchs_tokens_are_torchs(family, poll):
    t3 = random_t3(family)
    got = tokens_of(of_torch(t3), mixed(t3.config), EXACT.replace(poll_every=poll, slots=4, prefix_cache=True))
    assert got == tokens_of(t3, mixed(t3.config))


@pytest.mark.skipif(shutil.which("g++") is None, reason="MLX compiles by g++ where there is no Metal")
@pytest.mark.parametrize("family", ["tts", "turbo"])
def test_a_compiled_step_draws_the_same(family):
    t3 = random_t3(family)
    ours, options = of_torch(t3), EXACT.replace(poll_every=8)
    engine = Engine(MlxTokenRunner(ours, options, compiled=True), None, None, options, CPU)
    two = mixed(t3.config, 2)
    draw(engine, two)
    assert [r.tokens for r in two] == tokens_of(t3, mixed(t3.config, 2))


def test_a_small_position_table_is_never_left():
    """Steps past an utterance's end use no position outside the table."""
    t3 = random_t3("tts")
    positions = t3.config.prompt_tokens + 6
    small = copy.deepcopy(t3)
    small.config = dataclasses.replace(t3.config, speech_positions=positions)
    small.speech_pos_emb.emb.weight.data = small.speech_pos_emb.emb.weight.data[:positions]
    how = dict(max_new_tokens=positions - 2)
    got = tokens_of(of_torch(small), [request(small.config, **how)], EXACT.replace(poll_every=8))
    assert got == tokens_of(t3, [request(t3.config, **how)])


@pytest.mark.parametrize("family", ["tts", "turbo"])
def test_each_step_may_be_anothers_thread(family):
    """MLX fails if one thread begins a lazy array and another computes it."""
    t3 = random_t3(family)
    engine, requests = engine_of(of_torch(t3), EXACT.replace(poll_every=3)), mixed(t3.config)
    calls = [Call([r]) for r in requests]
    for call in calls:
        engine._submit(call)
        in_threads(engine.step)
    while engine.calls:
        in_threads(engine.step)
    assert [call.error for call in calls] == [None] * len(calls)
    assert [r.tokens for r in requests] == tokens_of(t3, mixed(t3.config))


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.skipif(
    shutil.which("g++") is None, reason="MLX compiles by g++ where there is no Metal"))])
def test_a_step_writes_the_cache_where_it_is(compiled):
    """A copy per step would cost more than the step."""
    t3 = random_t3("tts")
    options = EXACT.replace(poll_every=4)
    runner = MlxTokenRunner(of_torch(t3), options, compiled)
    engine = Engine(runner, None, None, options, CPU)
    for i in range(6):
        engine._submit(Call([request(t3.config, n=600, seed=i, max_new_tokens=400)]))
        engine.step()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    engine.step()
    assert mx.get_peak_memory() - before < sum(x.nbytes for x in (*runner.cache.k, *runner.cache.v)) / 2
    engine.close()
