"""Utterances that attend each to its own keys and values, and to a prompt that several share."""

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from t3_pairs import random_t3
from token_runs import CPU, EXACT, draw, engine_of, mixed, request, tokens_of

from chatterbox_opt.engine import own_rows
from chatterbox_opt.engine.cache import Decode, Prefill, StaticKVCache, empty_kv, paste
from chatterbox_opt.engine.own_rows import DecodeEach, Own, PrefillAfter, Run, may_be_shared
from chatterbox_opt.engine.prefix import Prefix
from chatterbox_opt.engine.slots import Slots
from chatterbox_opt.models.layers import rope_table

pytestmark = pytest.mark.kernels
SPOKEN = [(2, 37), (1, 12), (2, 61), (1, 0)]  # rows of an utterance, and the position it writes after a shared prompt
LENGTHS = (150, 300)  # positions of two voices' prompts


def random_kv(config, rows: int, length: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return empty_kv(config, rows, length, CPU, dtype).normal_()


def random_prompt(config, length: int) -> Prefix:
    return Prefix(*random_kv(config, 1, length)[:, :, 0].unbind(1))


def copies(config, dtype: torch.dtype = torch.float32) -> list[Own]:
    """Each with its own length."""
    return [Own(random_kv(config, rows, position + 3, dtype), position) for rows, position in SPOKEN]


def two_voices(config) -> list[Own]:
    """Two utterances with one voice, three with another."""
    first, second = (random_prompt(config, n) for n in LENGTHS)
    spoken = [(*one, prompt) for one, prompt in zip([*SPOKEN, (1, 5)], (first, first, second, second, second))]
    return [Own(random_kv(config, rows, at + 3), prompt.length + at, prompt) for rows, at, prompt in spoken]


def row_positions(owns: list[Own]) -> torch.Tensor:
    return torch.tensor([own.position for own in owns for _ in range(own.kv.shape[2])])


def in_one_cache(config, owns: list[Own]) -> StaticKVCache:
    """Copies of all, with the prompts in front."""
    most, dtype = max(own.position for own in owns) + 4, owns[0].kv.dtype
    shared = StaticKVCache(random_kv(config, len(row_positions(owns)) + 1, most, dtype))
    row = 0
    for kv, _, prompt in owns:
        before = 0 if prompt is None else prompt.length
        shared.kv[:, :, row : row + kv.shape[2], :, before : before + kv.shape[4]] = kv
        for mine in range(row, row + kv.shape[2]) if before else ():
            paste(shared.kv, mine, prompt.k, prompt.v)
        row += kv.shape[2]
    return shared


@pytest.mark.parametrize(
    ("make", "dtype"),
    [(copies, torch.float32), (copies, torch.bfloat16), (two_voices, torch.float32)],
    ids=["copies", "bfloat16", "two voices"],
)
@pytest.mark.parametrize("family", ["tts", "turbo"])
@torch.inference_mode()
def test_they_equal_rows_of_one_cache(family, make, dtype):
    """Rows at different positions give the same output and cache, and leave other positions and prompts unchanged."""
    t3 = random_t3(family).to(dtype)
    each = make(t3.config) if dtype == torch.float32 else make(t3.config, dtype)
    shared, at = in_one_cache(t3.config, each), row_positions(each)
    before, most = copy.deepcopy(each), max(own.position for own in each) + 1
    x = torch.randn(len(at), 1, t3.config.dim).to(dtype)
    mask = (torch.arange(most) <= at[:, None])[:, None, None]
    wanted = t3(x, at[:, None], Decode(shared, at, most, mask))
    got = t3(x, at[:, None], DecodeEach.of(each))
    bound = 1e-5 if dtype == torch.float32 else 3e-2
    assert (got - wanted).abs().max() < bound * wanted.abs().max()
    row = 0
    for own, old in zip(each, before):
        kv, start = own.kv, 0 if own.prompt is None else own.prompt.length
        mine = shared.kv[:, :, row : row + kv.shape[2], :, start : start + kv.shape[4]]
        assert (kv - mine).abs().max() < bound * mine.abs().max()
        assert not torch.equal(kv[..., own.position - start, :], old.kv[..., own.position - start, :])
        kv[..., own.position - start, :] = old.kv[..., own.position - start, :]
        assert torch.equal(kv, old.kv)
        assert start == 0 or torch.equal(own.prompt.k, old.prompt.k)
        row += kv.shape[2]


@pytest.mark.parametrize("make", [copies, two_voices])
@pytest.mark.parametrize("family", ["tts", "turbo"])
@torch.inference_mode()
def test_attention_of_an_utterance_ignores_the_others(family, make):
    """Equal to the last bit."""
    config = random_t3(family).config
    together = make(config)
    alone = copy.deepcopy(together)
    at = row_positions(together)
    for layer in range(config.layers):
        qkv = torch.randn(len(at), 1, 3 * config.heads * config.head_dim)
        rope = None if config.is_gpt else rope_table(config, 400, CPU)[at[:, None]]
        got = DecodeEach.of(together).fused(layer, qkv.clone(), rope)
        row = 0
        for own in alone:
            mine = slice(row, row + own.kv.shape[2])
            turned = None if rope is None else rope[mine]
            wanted = DecodeEach.of([own]).fused(layer, qkv[mine].clone(), turned)
            assert torch.equal(got[mine], wanted)
            row += own.kv.shape[2]
    assert all(torch.equal(a.kv, b.kv) for a, b in zip(together, alone))


@pytest.mark.parametrize("scale", [0.1, 30])  # 30: the greater part of some sums is in one of the parts
@torch.inference_mode()
def test_parts_joined_are_attention_to_all(scale):
    k, v, q = torch.randn(2, 3, 70, 16), torch.randn(2, 3, 70, 16), scale * torch.randn(2, 3, 5, 16)
    wanted = ((q.double() @ k.double().mT / 4).softmax(-1) @ v.double()).transpose(1, 2).flatten(2)
    for cut in (1, 40, 69):
        parts = [own_rows.attend_summed(q, k[:, :, span], v[:, :, span]) for span in (slice(cut), slice(cut, None))]
        assert (own_rows._joined(*parts[0], *parts[1]) - wanted).abs().max() < 2e-6 * v.abs().max()


@pytest.mark.parametrize("family", ["tts", "turbo"])
@torch.inference_mode()
def test_a_text_follows_a_shared_prompt(family):
    """As it follows a copy, in all its rows."""
    t3 = random_t3(family)
    prompt = random_prompt(t3.config, LENGTHS[0])
    x, span = torch.randn(2, 18, t3.config.dim), torch.arange(prompt.length, prompt.length + 18)[None]
    copied, own = random_kv(t3.config, 2, prompt.length + 20), random_kv(t3.config, 2, 20)
    for row in range(2):
        paste(copied, row, prompt.k, prompt.v)
    wanted = t3(x, span, Prefill(copied, prompt.length))
    got = t3(x, span, PrefillAfter(own, prompt))
    assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()
    written = copied[..., prompt.length : prompt.length + 18, :]
    assert (own[..., :18, :] - written).abs().max() < 1e-5 * written.abs().max()


# ---- in the engine ---------------------------------------------------------------------------------


def test_a_long_prompt_is_in_memory_once(gpt):
    """Whoever speaks with the voice, and however many."""
    engine = engine_of(gpt, EXACT.replace(prefix_cache=True))
    speakers = [request(gpt.config, seed=i, text_seed=i, max_new_tokens=6) for i in range(4)]
    for other in speakers[1:]:
        other.cond = speakers[0].cond
    seen = []
    draw(engine, speakers, progress=lambda *_: seen.append([(s.prompt, s.kv.shape[4]) for s in engine.tokens.live]))
    assert len(seen) > 2
    assert len({id(prompt) for step in seen for prompt, _ in step}) == 1
    assert max(length for step in seen for _, length in step) < engine.tokens.prefixes.get(speakers[0].cond).length


@pytest.mark.parametrize(("name", "dtype"), [("llama", torch.float32), ("gpt", torch.bfloat16)])
def test_other_prompts_are_copied(name, dtype, request):
    """Short ones, for which that is quicker, and those in another precision than torch's attention sums for."""
    from token_runs import request as utterance

    t3 = copy.deepcopy(request.getfixturevalue(name)).to(dtype)
    engine = engine_of(t3)
    seen = []
    draw(engine, [utterance(t3.config, max_new_tokens=4)], progress=lambda *_: seen.extend(engine.tokens.live))
    assert seen
    assert all(slot.prompt is None for slot in seen)


def test_copies_draw_the_same_tokens(gpt, monkeypatch):
    wanted = tokens_of(gpt, mixed(gpt.config))
    monkeypatch.setattr(own_rows, "LONG", 10_000)
    assert tokens_of(gpt, mixed(gpt.config)) == wanted


@given(st.lists(st.tuples(st.sampled_from([None, 0, 1, 2]), st.sampled_from([1, 2])), min_size=1, max_size=9))
def test_those_with_one_prompt_lie_side_by_side(speakers):
    """The most first, so that few shapes of a batch come up; slots keep their numbers, rows lie without a gap."""
    config = random_t3("tts").config
    prompts = [random_prompt(config, 2) for _ in range(3)]
    slots = Slots(9, 18, config, CPU)
    for which, width in speakers:
        slots.add(request(config, cfg_weight=width - 1)).prompt = None if which is None else prompts[which]
    slots.arrange()
    in_order = sorted(slots.live, key=lambda slot: slot.cond)
    assert [row for slot in in_order for row in slot.rows] == list(range(slots.rows))
    sizes = [len(list(same)) for _, same in itertools.groupby(in_order, key=lambda slot: id(slot.prompt))]
    assert len(sizes) == len({which for which, _ in speakers})
    assert sizes == sorted(sizes, reverse=True)
    assert [slot.index for slot in slots.live] == list(range(len(speakers)))


def test_voices_take_turns_in_one_batch(gpt):
    """Each voice's utterances are one run of the step, whatever order they came in."""
    voices = [request(gpt.config, voice_seed=i).cond for i in range(2)]
    engine = engine_of(gpt, EXACT.replace(prefix_cache=True))
    mine = [request(gpt.config, seed=i, text_seed=i, max_new_tokens=12) for i in range(5)]
    for i, one in enumerate(mine):
        one.cond = voices[i % 2]
    runs = []
    original = DecodeEach.of

    def spy(owns):
        runs.append(original(owns).runs)
        return original(owns)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecodeEach, "of", spy)
        draw(engine, mine)
    assert runs[0] == (Run(True, (1, 1, 1)), Run(True, (1, 1)))
    alone = [request(gpt.config, seed=i, text_seed=i, voice_seed=i % 2, max_new_tokens=12) for i in range(5)]
    assert [u.tokens for u in mine] == [tokens_of(gpt, [one])[0] for one in alone]


def test_which_prompts_are_shared(gpt):
    prompt = random_prompt(gpt.config, own_rows.LONG)
    assert may_be_shared(prompt)
    assert not may_be_shared(Prefix(prompt.k[:, :, 1:], prompt.v[:, :, 1:]))
    assert not may_be_shared(Prefix(prompt.k.bfloat16(), prompt.v.bfloat16()))
    assert not may_be_shared(Prefix(prompt.k.to("meta"), prompt.v.to("meta")))
