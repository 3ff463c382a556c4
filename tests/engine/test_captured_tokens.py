"""The decode step as it is captured: what it may not do, and that padding, replays and compilation change nothing."""

import copy

import pytest
import torch
from replay import Replay, cast, crossings, no_gpu
from t3_pairs import random_t3
from token_runs import EXACT, mixed, request, tokens_of

from chatterbox_opt.config import tiny
from chatterbox_opt.engine.noise import RequestNoise
from chatterbox_opt.engine.tokens import TokenRequest, TokenRunner
from chatterbox_opt.models.t3 import T3


@torch.inference_mode()
@pytest.mark.parametrize("family", ["tts", "turbo"])
def test_the_captured_step_never_asks_the_host(family, llama, gpt):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = str(func)
            assert not any(bad in name for bad in ("_local_scalar_dense", "nonzero", "item", "unique")), name
            return func(*args, **(kwargs or {}))

    t3 = gpt if family == "turbo" else llama
    runner = TokenRunner(t3, EXACT)
    runner.warmup(4)
    runner.filters = runner._usual_filters()
    runner.cache.clear(256)
    with Watch():
        rows = 4 if t3.config.is_gpt else 8
        runner._step(4, rows, 256, None)


@pytest.mark.parametrize("family", ["tts", "turbo"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_captured_step_takes_nothing_from_the_host(family, dtype):
    """Which would end the capture."""
    config = tiny(family).t3
    with no_gpu():
        runner = TokenRunner(cast(T3(config), dtype), EXACT)
        runner._make_room(2, 4, 256)
        runner.filters = runner._usual_filters()
        rows = 2 if config.is_gpt else 4
        assert crossings(lambda: runner._step(2, rows, 256, None)) == []


@pytest.mark.parametrize("family", ["tts", "turbo"])
def test_padded_batches_of_changing_size(family, llama, gpt):
    """Captured batches have 1, 2, 4... lanes: what fills them up must stay inside every table and disturb nobody."""
    t3 = gpt if family == "turbo" else llama
    plain = dict(cfg_weight=0.0)
    requests = [request(t3.config, seed=i, text_seed=i, max_new_tokens=n, **s) for i, (n, s) in enumerate([
        (5, {}), (40, plain), (9, {}), (33, plain), (90, plain), (12, {}), (26, plain), (64, {}), (7, plain)
    ])]  # fmt: skip
    wanted = tokens_of(t3, copy.deepcopy(requests), EXACT.replace(slots=1))
    for slots, poll in ((5, 1), (3, 8), (16, 4)):
        runner = TokenRunner(t3, EXACT.replace(slots=slots, poll_every=poll))
        runner.captured = Replay()
        for _ in range(2):  # the second run begins with what the first left behind
            got = runner.generate(copy.deepcopy(requests))
            assert [r.tokens.tolist() for r in got] == [w.tolist() for w in wanted]
        assert {1, 2, 4} <= {n for n, *_ in runner.captured.keys}


def test_only_what_a_run_can_meet_is_captured(llama):
    runner = TokenRunner(llama, EXACT)
    runner.captured = Replay()
    runner.generate([request(llama.config, max_new_tokens=4)])
    assert {(n, rows) for n, rows, *_ in runner.captured.keys} == {(1, 2)}
    runner.generate([request(llama.config, max_new_tokens=4, cfg_weight=0.0)] * 2)
    assert {(n, rows) for n, rows, *_ in runner.captured.keys} >= {(1, 1), (2, 2)}


def test_a_warm_up_makes_room_for_the_slots_there_are(llama):
    runner = TokenRunner(llama, EXACT.replace(slots=2))
    runner.warmup(64)
    assert runner.lanes.capacity == 2
    assert runner.cache.rows == 4


@pytest.mark.slow
@pytest.mark.parametrize("family", ["tts", "turbo"])
def test_compiled_is_eager(family, llama, gpt):
    """torch.compile on the CPU: the same step as on a GPU, all but its recording."""
    t3 = gpt if family == "turbo" else llama
    requests = [request(t3.config, seed=i, max_new_tokens=12) for i in range(2)]
    wanted = tokens_of(t3, copy.deepcopy(requests))
    got = tokens_of(t3, requests, EXACT.replace(compile="reduce-overhead"))
    assert [t.tolist() for t in got] == [t.tolist() for t in wanted]


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["tts", "turbo"])
@pytest.mark.parametrize("mode", ["cudagraph", "reduce-overhead"])
def test_graph_is_eager(family, mode):
    t3 = random_t3(family).cuda()
    gpu = torch.device("cuda")

    def requests():
        made = enumerate(mixed(t3.config))
        return [TokenRequest(r.text_ids, r.cond, r.sampling, RequestNoise(gpu, i)) for i, r in made]

    for options in (EXACT, EXACT.replace(poll_every=8)):
        eager = TokenRunner(t3, options).generate(requests())
        graph = TokenRunner(t3, options.replace(compile=mode)).generate(requests())
        assert [r.tokens.tolist() for r in eager] == [r.tokens.tolist() for r in graph]
