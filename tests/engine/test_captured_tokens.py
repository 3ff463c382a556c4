"""The captured decode step: what it must not do, and that padding, replays and compilation change nothing."""

import weakref
from collections import Counter

import pytest
import torch
from replay import Replay, Watch, addresses, cast, crossings, no_gpu, waits_for_the_device
from t3_pairs import random_t3
from token_runs import EXACT, draw, engine_of, mixed, request, tokens_of

from chatterbox_opt.config import tiny
from chatterbox_opt.engine import step, tokens
from chatterbox_opt.engine.cache import StaticKVCache, empty_kv
from chatterbox_opt.engine.noise import RequestNoise
from chatterbox_opt.engine.request import Call
from chatterbox_opt.engine.slots import Slots
from chatterbox_opt.engine.tokens import TokenRunner
from chatterbox_opt.models.t3 import T3


def replaying(t3, options=EXACT):
    """An engine whose prefill and decode steps are captured and which draws ahead, as on a GPU."""
    engine = engine_of(t3, options)
    engine.tokens.step.captured = Replay.of(engine.tokens.step.captured)
    engine.tokens.prompts.captured = Replay.of(engine.tokens.prompts.captured)
    engine.tokens.draws_ahead = True
    assert engine.tokens.shared
    return engine


def keys_of(engine) -> set:
    return set(engine.tokens.step.captured.keys)


@torch.inference_mode()
@pytest.mark.parametrize("sorting", [False, True])
@pytest.mark.parametrize("family", ["tts", "turbo"])
def test_the_captured_step_does_not_wait_for_the_device(family, sorting, llama, gpt):
    t3 = gpt if family == "turbo" else llama
    runner = replaying(t3, EXACT.replace(slots=4)).tokens
    runner.reserve(4, 256)
    runner.cache.clear(256)
    rows = 4 if t3.config.is_gpt else 8
    assert waits_for_the_device(lambda: runner.step._captured_step(4, rows, 256, sorting)) == []


@pytest.mark.parametrize("family", ["tts", "turbo"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_captured_step_takes_nothing_from_the_host(family, dtype):
    """Copies from the host would end the capture."""
    config = tiny(family).t3
    with no_gpu():
        runner = TokenRunner(cast(T3(config), dtype), EXACT)
        rows = 2 if config.is_gpt else 4
        cache = StaticKVCache(empty_kv(config, rows, 256, runner.device, runner.dtype))
        runner._use(Slots(2, rows, config, runner.device), cache)
        for sorting in (False, True):
            assert crossings(lambda s=sorting: runner.step._captured_step(2, rows, 256, s)) == []


@pytest.mark.parametrize("family", ["tts", "turbo"])
@torch.inference_mode()
def test_besides_replays_a_block_allocates_only_its_tokens(family, llama, gpt, monkeypatch):
    t3 = gpt if family == "turbo" else llama
    engine = replaying(t3, EXACT.replace(poll_every=8))
    engine.inbox.append(Call([request(t3.config) for _ in range(2)]))
    for _ in range(3):
        engine.step()
    runner, captured = engine.tokens, engine.tokens.step.captured
    assert len(runner.live) == 2
    monkeypatch.setattr(captured, "run", lambda key, run: captured._results[key])
    allocating: Counter[str] = Counter()

    def see(func, given, out):
        allocating.update([func._schema.name] * bool(addresses(out) - addresses(given)))

    with Watch(see):
        runner._block(8)
    assert allocating.pop("aten::clone") == 8, "a replay overwrites the tokens of the one before"
    assert sum(allocating.values()) == 1, f"and one stack of them: {allocating}"


def nine_requests(config) -> list:
    plain = dict(cfg_weight=0.0)
    return [request(config, seed=i, text_seed=i, max_new_tokens=n, **s) for i, (n, s) in enumerate([
        (5, {}), (40, plain), (9, {}), (33, plain), (90, plain), (12, {}), (26, plain), (64, {}), (7, plain)
    ])]  # fmt: skip


@pytest.mark.kernels
@pytest.mark.parametrize("family", ["tts", "turbo"])
def test_padded_batches_of_changing_size(family, llama, gpt):
    """Captured batches have 1, 2, 4... slots: padding must stay inside every table and change no other row."""
    t3 = gpt if family == "turbo" else llama
    wanted = [tokens_of(t3, [r])[0] for r in nine_requests(t3.config)]
    for slots, poll in ((5, 1), (3, 8), (16, 4)):
        engine = replaying(t3, EXACT.replace(slots=slots, poll_every=poll))
        for _ in range(2):  # the second run begins with what the first left behind
            assert [r.tokens for r in draw(engine, nine_requests(t3.config))] == wanted
        assert {1, 2, 4} <= {n for n, *_ in keys_of(engine)}


@pytest.mark.kernels
@pytest.mark.parametrize("family", ["tts", "turbo"])
@pytest.mark.parametrize("poll", [1, 8])
@torch.inference_mode()
def test_a_step_can_be_captured_in_the_middle_of_an_utterance(family, poll, llama, gpt, monkeypatch):
    """Because utterances join, leave or outgrow what is captured. No token of any utterance changes."""
    t3 = gpt if family == "turbo" else llama
    monkeypatch.setattr(step, "LIVE", tuple(t3.config.prefix_len + 20 * k for k in range(2, 8)))
    filters = dict(top_p=1.0, top_k=0) if t3.config.is_gpt else {}  # of those that do not sort

    def voices():
        settings = [dict(max_new_tokens=100, **filters), dict(max_new_tokens=30, top_p=0.8), dict(max_new_tokens=50)]
        return [request(t3.config, seed=i, text_seed=i, **s) for i, s in enumerate(settings)]

    wanted = [tokens_of(t3, [r])[0] for r in voices()]
    engine = replaying(t3, EXACT.replace(poll_every=poll))
    captured, midway = engine.tokens.step.captured, []
    prepare = captured.prepare

    def watch(key, *how):
        midway.append([len(slot.utterance.tokens) for slot in engine.tokens.live])
        return prepare(key, *how)

    monkeypatch.setattr(captured, "prepare", watch)
    requests = voices()
    for r, after in zip(requests, (0, 30, 45)):  # each joins once the first has come so far
        while len(requests[0].tokens) < after:
            engine.step()
        engine.check(call := Call([r]))
        engine.inbox.append(call)
    while engine.step():
        pass
    assert [r.tokens for r in requests] == wanted
    assert sum(max(counts) > 5 for counts in midway) >= 4, "or nothing was shown"
    assert any(len(counts) == 3 for counts in midway)


def test_a_run_captures_only_the_steps_it_uses(llama):
    engine = replaying(llama)
    draw(engine, [request(llama.config, max_new_tokens=4)])
    assert keys_of(engine) == {(1, 2, 256, False)}
    draw(engine, [request(llama.config, max_new_tokens=4, cfg_weight=0.0) for _ in range(2)])
    assert keys_of(engine) == {(1, 2, 256, False), (2, 2, 256, False)}


def test_requests_of_other_options_share_what_is_captured(llama):
    """Every request is served by one of two sets of filters."""
    engine = replaying(llama)
    draw(engine, [request(llama.config, max_new_tokens=4)])
    draw(engine, [request(llama.config, max_new_tokens=4, top_p=0.7)])
    known = keys_of(engine)
    assert known == {(1, 2, 256, False), (1, 2, 256, True)}
    others = [
        dict(min_p=0.0), dict(min_p=0.3, temperature=1.5), dict(temperature=0.0), dict(repetition_penalty=1.0),
        dict(cfg_weight=1.5), dict(top_k=20), dict(top_k=7, top_p=0.9, min_p=0.0), dict(emotion=0.9),
    ]
    for settings in others:
        settings = dict(max_new_tokens=12, **settings)
        (wanted,) = tokens_of(llama, [request(llama.config, **settings)])
        assert draw(engine, [request(llama.config, **settings)])[0].tokens == wanted, settings
    assert keys_of(engine) == known


@pytest.mark.parametrize("family", ["tts", "turbo"])
def test_nothing_is_captured_after_a_warm_up(family, llama, gpt):
    t3 = gpt if family == "turbo" else llama
    engine = replaying(t3, EXACT.replace(slots=4))
    with engine.idle():
        engine.tokens.warmup(4)
    known = keys_of(engine)
    assert known == set(engine.tokens.step.planned(4))
    lives = {live for *_, live, _ in known}
    width = 1 if t3.config.is_gpt else 2
    assert known == {(n, width * n, live, sorting) for n in (1, 2, 4) for live in lives for sorting in (False, True)}
    wanted = [tokens_of(t3, [r])[0] for r in mixed(t3.config)]
    assert [r.tokens for r in draw(engine, mixed(t3.config))] == wanted
    assert keys_of(engine) == known


def test_the_memory_of_a_cache_goes_before_a_longer_one_comes(llama, monkeypatch):
    engine, left = replaying(llama), []
    draw(engine, [request(llama.config, max_new_tokens=4)])
    before, make = weakref.ref(engine.tokens.cache.kv), tokens.empty_kv
    monkeypatch.setattr(tokens, "empty_kv", lambda *how: (left.append(before()), make(*how))[1])
    engine.tokens.reserve(1, engine.tokens.cache.length + 1)
    assert left == [None]


def test_captures_are_dropped_with_their_memory(llama):
    """A longer utterance than fits: new memory, new captures, the same tokens."""
    engine = replaying(llama)
    draw(engine, [request(llama.config, max_new_tokens=4)])
    cache = engine.tokens.cache
    engine.tokens.reserve(1, cache.length + 1)
    assert engine.tokens.cache is not cache
    assert keys_of(engine) == set()
    (wanted,) = tokens_of(llama, [request(llama.config, max_new_tokens=8)])
    assert draw(engine, [request(llama.config, max_new_tokens=8)])[0].tokens == wanted


@pytest.mark.parametrize("slots", [2, 3])
def test_a_warm_up_allocates_every_slot(llama, slots):
    engine = replaying(llama, EXACT.replace(slots=slots))
    engine.tokens.warmup(64)
    assert engine.tokens.free == slots
    assert engine.tokens.cache.kv.shape[2] == 2 * engine.tokens.slots.capacity <= 8


@pytest.mark.parametrize("warm", [False, True])
def test_a_smaller_cache_takes_less_memory(llama, warm):
    """A row has 1,536 positions, or as many as an utterance may have if these are fewer."""
    for asked, length in ((512, 512), (600, 768), (4608, 1536)):
        engine = replaying(llama, EXACT.replace(slots=1, cache_len=asked))
        if warm:
            engine.tokens.warmup()
        (wanted,) = tokens_of(llama, [request(llama.config, max_new_tokens=8)])
        assert draw(engine, [request(llama.config, max_new_tokens=8)])[0].tokens == wanted
        assert engine.tokens.cache.length == length


@pytest.mark.parametrize("family", ["tts", "turbo"])
def test_what_is_broken_past_an_end_does_not_reach_the_next_utterance(family, llama, gpt):
    """Nobody looks at what is drawn there, in the last block and the one after it, and memory is used again."""
    t3 = gpt if family == "turbo" else llama
    engine = replaying(t3, EXACT.replace(slots=2, poll_every=8))
    block, broken = engine.tokens._block, []

    def breaking(steps):
        drawn = block(steps)
        for slot in engine.tokens.live:
            past = len(slot.utterance.tokens) + steps - slot.utterance.sampling.max_new_tokens
            if past > 0 and slot.utterance.sampling.max_new_tokens < 9:
                broken.append(past)
                for row in slot.rows:
                    engine.tokens.cache.kv[:, :, row, :, slot.position - min(past, steps) : slot.position] = torch.nan
        return drawn

    engine.tokens._block = breaking
    draw(engine, [request(t3.config, max_new_tokens=40), request(t3.config, seed=1, max_new_tokens=4)])
    assert len(broken) > 1, "the block that was begun ahead, too"
    assert engine.tokens.cache.kv[..., : engine.tokens.cache.clean, :].isfinite().all()
    later = [dict(seed=i, n=4, max_new_tokens=60) for i in range(2)]
    wanted = [tokens_of(t3, [request(t3.config, **how)])[0] for how in later]
    assert [u.tokens for u in draw(engine, [request(t3.config, **how) for how in later])] == wanted


@torch.inference_mode()
def test_what_is_broken_when_all_calls_are_ended_does_not_reach_the_next(llama):
    """As by Ctrl-C between a block and the look at it."""
    engine = replaying(llama)
    draw(engine, [request(llama.config, max_new_tokens=20)])
    engine.tokens.cache.kv[..., : engine.tokens.cache.clean, :] = torch.nan
    engine.end_all(RuntimeError("interrupted"))
    (wanted,) = tokens_of(llama, [request(llama.config, seed=1, max_new_tokens=30)])
    (after,) = draw(engine, [request(llama.config, seed=1, max_new_tokens=30)])
    assert after.tokens == wanted


@pytest.mark.slow
@pytest.mark.parametrize("family", ["tts", "turbo"])
def test_compiled_equals_eager(family, llama, gpt):
    """torch.compile on the CPU: the same step as on a GPU, without its recording."""
    t3 = gpt if family == "turbo" else llama

    def requests():
        return [request(t3.config, seed=i, max_new_tokens=12) for i in range(2)]

    got = tokens_of(t3, requests(), EXACT.replace(compile="reduce-overhead"))
    assert got == tokens_of(t3, requests())


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["tts", "turbo"])
@pytest.mark.parametrize("mode", ["cudagraph", "reduce-overhead"])
def test_graph_equals_eager(family, mode):
    t3 = random_t3(family).cuda()
    gpu = torch.device("cuda")

    def requests():
        made = mixed(t3.config)
        for i, r in enumerate(made):
            r.noise = RequestNoise(gpu, i)
        return made

    for options in (EXACT, EXACT.replace(poll_every=8)):
        assert tokens_of(t3, requests(), options.replace(compile=mode)) == tokens_of(t3, requests(), options)
