"""The k/v cache: where a step writes, and the two ways in which it reads."""

import copy

import pytest
import torch
from t3_pairs import random_t3

from chatterbox_opt.engine.cache import GRAIN, Decode, DecodeEach, Prefill, StaticKVCache, empty_kv, paste
from chatterbox_opt.models.layers import rope_table

pytestmark = pytest.mark.kernels
CPU = torch.device("cpu")
SPOKEN = [(2, 37), (1, 12), (2, 61), (1, 0)]  # rows of an utterance, and the position it writes


def random_kv(config, rows: int, length: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return empty_kv(config, rows, length, CPU, dtype).normal_()


def separate_caches(config, dtype: torch.dtype) -> list[tuple[torch.Tensor, int]]:
    """Returns a separate cache per utterance, each with its own length."""
    return [(random_kv(config, rows, position + 3, dtype), position) for rows, position in SPOKEN]


def row_positions() -> torch.Tensor:
    return torch.tensor([position for rows, position in SPOKEN for _ in range(rows)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["tts", "turbo"])
@torch.inference_mode()
def test_separate_caches_equal_rows_of_a_shared_one(family, dtype):
    """Rows at different positions give the same output and cache, and leave other positions unchanged."""
    t3 = random_t3(family).to(dtype)
    each = separate_caches(t3.config, dtype)
    at, most = row_positions(), max(position for _, position in SPOKEN) + 1
    shared = StaticKVCache(random_kv(t3.config, len(at) + 1, most + 3, dtype))
    row = 0
    for kv, _ in each:
        shared.kv[:, :, row : row + kv.shape[2], :, : kv.shape[4]] = kv
        row += kv.shape[2]
    before = [kv.clone() for kv, _ in each]
    x = torch.randn(len(at), 1, t3.config.dim).to(dtype)
    mask = (torch.arange(most) <= at[:, None])[:, None, None]
    wanted = t3(x, at[:, None], Decode(shared, at, most, mask))
    got = t3(x, at[:, None], DecodeEach.of(each))
    bound = 1e-5 if dtype == torch.float32 else 3e-2
    assert (got - wanted).abs().max() < bound * wanted.abs().max()
    row = 0
    for (kv, position), old in zip(each, before):
        mine = shared.kv[:, :, row : row + kv.shape[2], :, : kv.shape[4]]
        assert (kv - mine).abs().max() < bound * mine.abs().max()
        assert not torch.equal(kv[..., position, :], old[..., position, :])
        kv[..., position, :] = old[..., position, :]
        assert torch.equal(kv, old)
        row += kv.shape[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["tts", "turbo"])
@torch.inference_mode()
def test_attention_of_an_utterance_ignores_the_others(family, dtype):
    """Equal to the last bit."""
    config = random_t3(family).config
    together = separate_caches(config, dtype)
    alone = copy.deepcopy(together)
    at = row_positions()
    for layer in range(config.layers):
        qkv = torch.randn(len(at), 1, 3 * config.heads * config.head_dim).to(dtype)
        rope = None if config.is_gpt else rope_table(config, 80, CPU)[at[:, None]]
        got = DecodeEach.of(together).fused(layer, qkv.clone(), rope)
        row = 0
        for kv, position in alone:
            mine = slice(row, row + kv.shape[2])
            own = None if rope is None else rope[mine]
            wanted = DecodeEach.of([(kv, position)]).fused(layer, qkv[mine].clone(), own)
            assert torch.equal(got[mine], wanted)
            row += kv.shape[2]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(together, alone))


@torch.inference_mode()
def test_a_prompt_attends_to_its_prefix():
    """Rows of a shared tensor after a pasted prefix equal a computation in one go."""
    t3 = random_t3("tts")
    x = torch.randn(2, 30, t3.config.dim)
    span = torch.arange(30)[None]
    wanted = t3(x, span)[:, 12:]
    whole = random_kv(t3.config, 2, 40)
    t3(x, span, Prefill(whole, 0))
    kv = random_kv(t3.config, 4, 40)
    mine, others = kv.narrow(2, 1, 2), kv[:, :, [0, 3]].clone()
    for row in range(2):
        paste(mine, row, *whole[:, :, row, :, :12].unbind(1))
    got = t3(x[:, 12:], span[:, 12:], Prefill(mine, 12))
    assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert (mine[..., :30, :] - whole[..., :30, :]).abs().max() < 1e-5 * whole.abs().max()
    assert torch.equal(kv[:, :, [0, 3]], others)


@torch.inference_mode()
def test_keys_and_values_are_parts_of_one_tensor():
    config = random_t3("tts").config
    cache = StaticKVCache(random_kv(config, 3, 70))
    k, v = (torch.randn(config.layers, config.heads, 9, config.head_dim) for _ in range(2))
    for row in (0, 2):
        paste(cache.kv, row, k, v)
        assert torch.equal(cache.kv[:, 0, row, :, :9], k)
        assert torch.equal(cache.kv[:, 1, row, :, :9], v)
    cache.move(2, 1, 9)
    assert torch.equal(cache.kv[:, :, 1, :, :9], cache.kv[:, :, 2, :, :9])
    assert not torch.equal(cache.kv[:, :, 1, :, 9:], cache.kv[:, :, 2, :, 9:])


@torch.inference_mode()
def test_memory_is_cleared_as_far_as_it_is_read():
    config = random_t3("tts").config
    cache = StaticKVCache(empty_kv(config, 3, 3 * GRAIN, CPU, torch.float32))
    cache.kv.fill_(torch.nan)
    cache.clear(GRAIN + 1)
    assert not cache.kv[..., : 2 * GRAIN, :].any()
    assert cache.kv[..., 2 * GRAIN :, :].isnan().all()
    cache.wipe([0, 2])
    assert not cache.kv[:, :, [0, 2]].any()
    assert cache.kv[:, :, 1, :, 2 * GRAIN :].isnan().all()
