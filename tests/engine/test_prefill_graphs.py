"""The prefill of one utterance as a graph: what it leaves in the cache, and when it is used."""

from __future__ import annotations

import pytest
import torch
from replay import Replay
from token_runs import EXACT, engine_of, request

from chatterbox_opt.engine import prefill_graphs
from chatterbox_opt.engine.agreement import difference
from chatterbox_opt.engine.cache import StaticKVCache, empty_kv
from chatterbox_opt.engine.request import Call
from chatterbox_opt.engine.slots import Slots

pytestmark = pytest.mark.kernels
LENGTH = 640


def runner_of(t3, graphs: bool):
    runner = engine_of(t3).tokens
    rows = 4 if t3.config.is_gpt else 8
    cache = empty_kv(t3.config, rows, LENGTH, runner.device, runner.dtype).zero_()
    runner._use(Slots(4, rows, t3.config, runner.device), StaticKVCache(cache))
    if graphs:
        runner.prompts.captured = Replay()
    return runner


def prompt(runner, utterance):
    slot = runner.slots.add(utterance)
    logits = runner._prompt([slot], [runner.prefixes.get(utterance.cond)])
    return logits.clone(), runner.cache.kv[:, :, slot.rows, :, : slot.position].clone()


@pytest.fixture(autouse=True)
def shared(monkeypatch):
    monkeypatch.setattr("chatterbox_opt.engine.tokens.TokenRunner.shared", True)


@pytest.mark.parametrize("family", ["tts", "turbo"])
@torch.inference_mode()
def test_logits_and_cache_equal_an_eager_pass(family, llama, gpt):
    t3 = gpt if family == "turbo" else llama
    plain, graphs = runner_of(t3, False), runner_of(t3, True)
    for n, how in ((20, {}), (5, {}), (63, {}), (100, {} if t3.config.is_gpt else dict(cfg_weight=0.0))):
        utterance = request(t3.config, n, seed=n, text_seed=n, **how)
        for got, wanted in zip(prompt(graphs, utterance), prompt(plain, utterance)):
            assert difference(got, wanted) < 1e-5
    assert {size for *_, size in graphs.prompts.captured.keys} >= {64, 128}


@torch.inference_mode()
def test_long_texts_and_many_voice_lengths_run_eagerly(gpt):
    runner = runner_of(gpt, True)
    prompt(runner, request(gpt.config, prefill_graphs.LONGEST))
    assert not runner.prompts.captured.keys
    for length in range(prefill_graphs.VOICES):
        assert runner.prompts.key(1, 10 + length, 20)
        runner.prompts._hold((1, 10 + length, 64))
    assert runner.prompts.key(1, 10, 20)
    assert runner.prompts.key(1, 50, 20) is None


def test_many_that_join_at_once_are_one_pass(llama):
    engine = engine_of(llama, EXACT.replace(slots=8))
    runner = engine.tokens
    runner.prompts.captured = Replay()
    joined, join = [], runner._join
    runner._join = lambda new: (joined.append(len(new)), join(new))[1]
    for count in (prefill_graphs.ALONE, prefill_graphs.ALONE + 1):
        engine.run(Call([request(llama.config, text_seed=i, max_new_tokens=2) for i in range(count)]))
    assert joined == [1] * prefill_graphs.ALONE + [prefill_graphs.ALONE + 1]


@torch.inference_mode()
def test_a_warm_up_captures_the_lengths_of_one_utterance(llama):
    runner = runner_of(llama, True)
    runner.prompts.warmup(16)
    assert runner.prompts.captured.keys == runner.prompts.planned(16)
    before = list(runner.prompts.captured.keys)
    prompt(runner, request(llama.config, 20))
    assert runner.prompts.captured.keys == before
