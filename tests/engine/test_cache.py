"""The k/v cache: what is written where, and the two ways a step reads it."""

import copy

import pytest
import torch
from t3_pairs import random_t3

from chatterbox_opt.engine.cache import GRAIN, Decode, DecodeLevel, StaticKVCache

CPU = torch.device("cpu")


def filled(config, rows: int, length: int, dtype: torch.dtype = torch.float32) -> StaticKVCache:
    cache = StaticKVCache.allocate(config, rows, length, CPU, dtype)
    cache.kv.normal_()
    return cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["tts", "turbo"])
@torch.inference_mode()
def test_rows_at_one_position_need_no_mask(family, dtype):
    """A level step is an ordinary one: the same output, the same cache, spare rows and positions untouched."""
    t3 = random_t3(family).to(dtype)
    rows, position = 2, 37
    one = filled(t3.config, rows + 1, 80, dtype)
    other = copy.deepcopy(one)
    x = torch.randn(rows, 1, t3.config.dim).to(dtype)
    at = torch.full((rows,), position)
    mask = (torch.arange(position + 1) <= at[:, None])[:, None, None]
    wanted = t3(x, at[:, None], Decode(one, at, position + 1, mask))
    got = t3(x, at[:, None], DecodeLevel(other, rows, position))
    bound = 1e-5 if dtype == torch.float32 else 3e-2
    assert (got - wanted).abs().max() < bound * wanted.abs().max()
    assert (other.kv - one.kv).abs().max() < bound * one.kv.abs().max()
    other.kv[:, :, :rows, :, position] = one.kv[:, :, :rows, :, position]
    assert torch.equal(other.kv, one.kv)


@torch.inference_mode()
def test_keys_and_values_are_parts_of_one_tensor():
    config = random_t3("tts").config
    cache = filled(config, 3, 70)
    prefix = [torch.randn(config.layers, config.heads, 9, config.head_dim) for _ in range(2)]
    cache.paste([0, 2], *prefix)
    for row in (0, 2):
        assert torch.equal(cache.k[:, row, :, :9], prefix[0])
        assert torch.equal(cache.v[:, row, :, :9], prefix[1])
    cache.move(2, 1, 9)
    assert torch.equal(cache.kv[:, :, 1, :, :9], cache.kv[:, :, 2, :, :9])
    assert not torch.equal(cache.kv[:, :, 1, :, 9:], cache.kv[:, :, 2, :, 9:])


@torch.inference_mode()
def test_memory_is_made_finite_as_far_as_it_is_read():
    config = random_t3("tts").config
    cache = StaticKVCache.allocate(config, 2, 3 * GRAIN, CPU, torch.float32)
    cache.kv.fill_(torch.nan)
    cache.clear(GRAIN + 1)
    assert not cache.kv[..., : 2 * GRAIN, :].any()
    assert cache.kv[..., 2 * GRAIN :, :].isnan().all()
