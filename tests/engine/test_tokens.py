"""The token engine: upstream's tokens at the same seed, and rows that do not depend on their batch."""

import copy
import dataclasses
import gc
import threading
import weakref
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from t3_pairs import pair, random_t3
from token_runs import CPU, EXACT, N, draw, engine_of, everywhere, mixed, request, tokens_of

from chatterbox_opt.engine.noise import RequestNoise
from chatterbox_opt.engine.request import Call, Cancelled

pytestmark = pytest.mark.kernels
# ---- against upstream ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {}, dict(cfg_weight=0.3), dict(top_p=0.8), dict(min_p=0.0), dict(min_p=0.2, top_p=0.9, cfg_weight=1.0),
        dict(repetition_penalty=2.0), dict(repetition_penalty=1.0, temperature=1.0), dict(temperature=0.3),
    ],
    ids=str,
)
def test_upstreams_tokens_at_the_same_seed(settings):
    upstream, ours, config = pair("tts")
    req = request(config, **settings)
    from chatterbox.models.t3.modules.cond_enc import T3Cond

    s, v = req.sampling, req.cond
    for seed in (0, 1):
        torch.manual_seed(seed)
        wanted = upstream.inference(
            t3_cond=T3Cond(v.speaker_emb, None, v.cond_prompt_speech_tokens, None, v.emotion_adv),
            text_tokens=req.text_ids[None].repeat(2, 1), max_new_tokens=N, temperature=s.temperature, top_p=s.top_p,
            min_p=s.min_p, repetition_penalty=s.repetition_penalty, cfg_weight=s.cfg_weight,
        )[0]
        after = torch.rand(3)
        for options in (EXACT, EXACT.replace(poll_every=8, prefix_cache=True)):
            torch.manual_seed(seed)
            got = tokens_of(ours, [request(config, seed=None, **settings)], options)[0]
            assert got == [t for t in wanted.tolist() if t != 6562]
            assert torch.equal(torch.rand(3), after), "the generator must stand where upstream's does"
    assert len(wanted) >= 64 or wanted[-1] == 6562


@pytest.mark.parametrize(
    "settings", [{}, dict(top_p=0.8), dict(top_k=50), dict(repetition_penalty=2.0), dict(temperature=1.0)], ids=str
)
@pytest.mark.parametrize("family", ["turbo", "nano"])
def test_turbos_tokens_at_the_same_seed(family, settings):
    upstream, ours, config = pair(family)
    req = request(config, **settings)
    from chatterbox.models.t3.modules.cond_enc import T3Cond

    s, v = req.sampling, req.cond
    torch.manual_seed(3)
    wanted = upstream.inference_turbo(
        T3Cond(v.speaker_emb, None, v.cond_prompt_speech_tokens, None, v.emotion_adv), req.text_ids[None],
        temperature=s.temperature, top_k=s.top_k, top_p=s.top_p, repetition_penalty=s.repetition_penalty,
        max_gen_len=N - 1,
    )[0]
    after = torch.rand(3)
    torch.manual_seed(3)
    assert tokens_of(ours, [request(config, seed=None, **settings)])[0] == [t for t in wanted.tolist() if t != 6562]
    assert torch.equal(torch.rand(3), after)


# ---- everything matters --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [dict(text_seed=1), dict(voice_seed=1), dict(emotion=0.9), dict(cfg_weight=0.0), dict(n=21), dict(seed=1)],
    ids=str,
)
@everywhere
def test_each_part_of_the_input_changes_the_tokens(llama, change):
    base = tokens_of(llama, [request(llama.config)])[0]
    assert base != tokens_of(llama, [request(llama.config, **change)])[0]


# ---- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["tts", "turbo"])
@pytest.mark.parametrize(
    "options", [EXACT, EXACT.replace(slots=2), EXACT.replace(poll_every=8, slots=3, prefix_cache=True)], ids=range(3)
)
@everywhere
def test_a_row_is_the_same_in_any_batch(family, options, llama, gpt):
    t3 = gpt if family == "turbo" else llama
    alone = [tokens_of(t3, [r])[0] for r in mixed(t3.config)]
    for got in (tokens_of(t3, mixed(t3.config), options), tokens_of(t3, mixed(t3.config)[::-1], options)[::-1]):
        assert got == alone


@everywhere
def test_voices_of_several_lengths_share_a_batch(gpt):
    """A GPT-2 voice is as long as its recording."""
    requests = [request(gpt.config, seed=i, max_new_tokens=12) for i in range(4)]
    for i in (0, 2, 3):
        short = copy.copy(requests[i].cond)
        short.cond_prompt_speech_tokens = short.cond_prompt_speech_tokens[:, : 9 + i // 3]
        requests[i] = dataclasses.replace(requests[i], cond=short)

    def fresh(some):
        return [dataclasses.replace(r, noise=RequestNoise(CPU, i), tokens=[]) for i, r in some]

    together = tokens_of(gpt, fresh(enumerate(requests)), EXACT.replace(slots=3))
    for i, r in enumerate(requests):
        assert together[i] == tokens_of(gpt, fresh([(i, r)]))[0]


def test_a_small_position_table_is_never_left(llama):
    """Steps past an utterance's end use no position outside the table; a request for more positions is refused."""
    positions = llama.config.prompt_tokens + 6
    config = dataclasses.replace(llama.config, speech_positions=positions)
    small, most = copy.deepcopy(llama), positions - 2
    small.config = config
    small.speech_pos_emb.emb.weight.data = small.speech_pos_emb.emb.weight.data[:positions]
    engine = engine_of(small, EXACT.replace(poll_every=8))
    (result,) = draw(engine, [request(config, max_new_tokens=most)])
    assert result.tokens == tokens_of(llama, [request(config, max_new_tokens=most)])[0]
    with pytest.raises(ValueError, match=f"max_new_tokens={most + 1}"):
        draw(engine, [request(config, max_new_tokens=most + 1)])


@torch.inference_mode()
@everywhere
def test_slots_leave_nothing_behind(llama):
    engine = engine_of(llama)
    first = draw(engine, [request(llama.config)])[0].tokens
    draw(engine, mixed(llama.config))
    assert draw(engine, [request(llama.config)])[0].tokens == first


@pytest.mark.parametrize("shared", [False, True])
@torch.inference_mode()
def test_uninitialised_memory_is_never_read(llama, shared, monkeypatch):
    from chatterbox_opt.engine import tokens as module

    def all_nan(*args):
        return empty_kv(*args).fill_(float("nan"))

    empty_kv = module.empty_kv
    monkeypatch.setattr(module, "empty_kv", all_nan)
    engine = engine_of(llama)
    monkeypatch.setattr(type(engine.tokens), "shared", property(lambda _: shared))
    got = [r.tokens for r in draw(engine, mixed(llama.config))]
    monkeypatch.undo()
    assert got == tokens_of(llama, mixed(llama.config))


@everywhere
def test_changed_parameters_take_effect(llama):
    engine = engine_of(llama)
    draws = [
        draw(engine, [request(llama.config, **s)])[0].tokens
        for s in ({}, dict(temperature=1.5), dict(cfg_weight=1.5), dict(top_p=0.5), dict(min_p=0, temperature=2), {})
    ]
    assert draws[0] == draws[-1]
    assert len({tuple(d) for d in draws}) == 5


@everywhere
@pytest.mark.parametrize("ahead", [False, True])
def test_drawing_ahead_leaves_the_generator_in_place(ahead, llama):
    for poll in (1, 3, 8):
        req, longer = (request(llama.config, seed=4, max_new_tokens=n) for n in (10, 40))
        engine = engine_of(llama, EXACT.replace(poll_every=poll))
        engine.tokens.draws_ahead = ahead
        draw(engine, [req, longer])
        assert longer.tokens[:10] == req.tokens
        after = req.noise.normal((3,))
        fresh = RequestNoise(CPU, 4)
        for _ in range(10):
            fresh.exponential(torch.empty(llama.config.speech_vocab))
        assert torch.equal(after, fresh.normal((3,)))


def beside(engine, longer, req):
    """Lets `req` join while `longer` is being spoken, and both end."""
    engine.inbox.append(Call([longer]))
    while len(longer.tokens) < 2:
        engine.step()
    engine.inbox.append(Call([req]))
    while engine.step():
        pass


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("poll", [1, 8])
def test_one_token_beside_others_leaves_the_generator_in_place(poll, ahead, llama):
    req, longer = request(llama.config, seed=4, max_new_tokens=1), request(llama.config, max_new_tokens=40)
    engine = engine_of(llama, EXACT.replace(poll_every=poll))
    engine.tokens.draws_ahead = ahead
    beside(engine, longer, req)
    assert (len(req.tokens), len(longer.tokens)) == (1, 40)
    after, fresh = req.noise.normal((3,)), RequestNoise(CPU, 4)
    fresh.exponential(torch.empty(llama.config.speech_vocab))
    assert torch.equal(after, fresh.normal((3,)))


@pytest.mark.parametrize("ahead", [False, True])
def test_a_cancelled_call_is_freed(ahead, llama):
    engine, cancel = engine_of(llama, EXACT.replace(poll_every=4)), threading.Event()
    engine.tokens.draws_ahead = ahead
    req = request(llama.config)
    known = weakref.ref(req)
    with pytest.raises(Cancelled):
        draw(engine, [req], cancel=cancel, progress=lambda done, most: cancel.set() if done > 8 else None)
    del req
    gc.collect()
    assert known() is None


# ---- ends ----------------------------------------------------------------------------------------


@everywhere
def test_limits_and_stops(llama):
    engine = engine_of(llama)
    short, long = draw(engine, [request(llama.config, max_new_tokens=5), request(llama.config, max_new_tokens=40)])
    assert short.stopped == "limit"
    assert len(short.tokens) == 5
    assert long.tokens[:5] == short.tokens
    assert draw(engine, []) == []


@contextmanager
def ending_at(t3, token: int):
    """Inside, the stop token is the most likely one where `token` was."""
    head = t3.speech_head.weight
    kept = head[6562].clone()
    try:
        head[6562] = head[token] * 1.01
        yield
    finally:
        head[6562] = kept


def test_eos_ends_a_row(llama):
    greedy = dict(temperature=0.0, max_new_tokens=30)
    (ahead,) = tokens_of(llama, [request(llama.config, **greedy)])
    with ending_at(llama, ahead[10]):
        for poll, drawn_ahead in ((1, False), (8, False), (1, True), (8, True)):
            engine = engine_of(llama, EXACT.replace(poll_every=poll))
            engine.tokens.draws_ahead = drawn_ahead
            (result,) = draw(engine, [request(llama.config, **greedy)])
            assert result.stopped == "eos"
            assert result.tokens == ahead[: ahead.index(ahead[10])]


def test_a_row_that_ends_at_once_has_no_tokens_beside_others(llama):
    greedy = dict(temperature=0.0, max_new_tokens=30)
    (alone,) = tokens_of(llama, [request(llama.config, **greedy)])
    with ending_at(llama, alone[0]):
        for poll, drawn_ahead in ((1, False), (8, False), (8, True)):
            engine = engine_of(llama, EXACT.replace(poll_every=poll))
            engine.tokens.draws_ahead = drawn_ahead
            req, longer = request(llama.config, **greedy), request(llama.config, n=9, text_seed=3, max_new_tokens=40)
            beside(engine, longer, req)
            assert len(longer.tokens) > 2, "or it was alone"
            assert (req.stopped, req.tokens) == ("eos", [])


def test_a_row_that_ends_at_once_is_not_begun_again_where_another_fails(llama):
    greedy = dict(temperature=0.0, max_new_tokens=30)
    (alone,) = tokens_of(llama, [request(llama.config, **greedy)])
    with ending_at(llama, alone[0]):
        engine, joined = engine_of(llama), []
        req, broken = request(llama.config, **greedy), request(llama.config, **greedy)
        join = engine.tokens._join

        def failing(new):
            joined.append(new[0][0])
            if new[0][0] is broken:
                raise RuntimeError("no memory")
            join(new)

        engine.tokens._join = failing
        calls = [Call([req]), Call([broken])]
        engine.inbox.extend(calls)
        while engine.step():
            pass
    assert joined.count(req) == 1
    assert (req.stopped, req.tokens, calls[0].error) == ("eos", [], None)
    assert str(calls[1].error) == "no memory"


def test_guard_stops_what_repeats():
    from chatterbox_opt.engine.endings import ran_away

    assert ran_away([7] * 80, 20)
    assert ran_away([1, 2, 3] * 30, 20)
    assert not ran_away(list(range(200)), 20)
    assert not ran_away([7] * 60, 20), "a pause of two seconds is none of its business"
    assert ran_away(list(range(600)), 20)
    stuck = random_t3("tts")
    stuck.speech_head.weight.zero_()  # greedy decoding now repeats one token
    how = dict(temperature=0.0, max_new_tokens=200)
    (free,) = draw(engine_of(stuck), [request(stuck.config, **how)])
    (guarded,) = draw(engine_of(stuck, EXACT.replace(runaway_guard=True)), [request(stuck.config, **how)])
    assert (free.stopped, len(free.tokens)) == ("limit", 200)
    assert guarded.stopped == "guard"
    assert len(guarded.tokens) < 100


@everywhere
def test_cancel_within_eight_tokens(llama):
    class After:
        def __init__(self, looks):
            self.looks = looks

        def is_set(self):
            self.looks -= 1
            return self.looks < 0

    for poll in (1, 8):
        requests = [request(llama.config, max_new_tokens=500) for _ in range(2)]
        with pytest.raises(Cancelled):
            draw(engine_of(llama, EXACT.replace(poll_every=poll)), requests, cancel=After(3))
        assert 0 < len(requests[0].tokens) <= 1 + 3 * 8


@everywhere
def test_tokens_are_seen_while_they_are_drawn(llama):
    """Each look shows more than the one before, nothing past the end, and the last one everything."""
    seen = []
    requests = [request(llama.config, max_new_tokens=n) for n in (6, 1, 11)]
    engine = engine_of(llama, EXACT.replace(poll_every=4, slots=2))
    ended = []

    def watch(drawn, at_most):
        seen.append([list(r.tokens) for r in requests])
        ended.append([r.stopped is not None for r in requests])
        assert drawn == sum(map(len, seen[-1])) <= at_most == 18

    draw(engine, requests, progress=watch)
    for before, after in pairwise(seen):
        assert all(b[: len(a)] == a for a, b in zip(before, after))
    assert [len(d) for d in seen[-1]] == [6, 1, 11]
    assert [r.tokens for r in requests] == seen[-1]
    assert all(ended[-1])
    assert any(1 <= sum(look) < 3 for look in ended)
    assert len({sum(map(len, look)) for look in seen}) > 3


# ---- what cannot work ----------------------------------------------------------------------------


@everywhere
def test_impossible_requests_are_refused(llama):
    engine = engine_of(llama)
    with pytest.raises(ValueError, match="position table"):
        draw(engine, [request(llama.config, n=2100)])
    with pytest.raises(ValueError, match="cache_len"):
        draw(engine_of(llama, EXACT.replace(cache_len=100)), [request(llama.config)])
    bad = request(llama.config)
    bad.text_ids[3] = 9999
    with pytest.raises(ValueError, match="vocabulary"):
        draw(engine, [bad])
    assert len(draw(engine, [request(llama.config)])[0].tokens)


@everywhere
def test_a_gpt_has_no_position_behind_its_table(gpt):
    """Its position table is learned: a longer cache does not extend it."""
    engine = engine_of(gpt, EXACT.replace(cache_len=20_000))
    most = gpt.config.max_positions
    with pytest.raises(ValueError, match=f"position table is {most}"):
        draw(engine, [request(gpt.config, n=most - 400, max_new_tokens=400)])


def test_a_llama_has_no_position_behind_its_table(llama):
    """Of rotations, which is computed once, as far as its configuration says."""
    small, config = copy.deepcopy(llama), dataclasses.replace(llama.config, max_positions=128)
    small.config = small.tfmr.config = config
    small.tfmr._rope = None
    engine = engine_of(small)
    with pytest.raises(ValueError, match="position table is 128"):
        draw(engine, [request(config, max_new_tokens=200)])
    wanted = tokens_of(llama, [request(config, max_new_tokens=60)])
    assert [draw(engine, [request(config, max_new_tokens=60)])[0].tokens] == wanted
