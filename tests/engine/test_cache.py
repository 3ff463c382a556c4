"""The k/v cache that all utterances share: what is written where."""


import pytest
import torch
from t3_pairs import random_t3

from chatterbox_opt.engine.cache import GRAIN, Prefill, StaticKVCache, empty_kv, paste

pytestmark = pytest.mark.kernels
CPU = torch.device("cpu")


def random_kv(config, rows: int, length: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return empty_kv(config, rows, length, CPU, dtype).normal_()


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
    before = cache.kv.clone()
    cache.move(2, 1, 9)
    assert torch.equal(cache.kv[:, :, 1, :, :9], before[:, :, 2, :, :9])
    assert torch.equal(cache.kv[:, :, 1, :, 9:], before[:, :, 1, :, 9:])
    assert not cache.kv[:, :, 2, :, :9].any(), "where a row was, nothing may stay that is not finite"


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
    cache.wipe([1], 2 * GRAIN, 3 * GRAIN - 1)
    assert not cache.kv[:, :, 1, :, : 3 * GRAIN - 1].any()
    assert cache.kv[:, :, 1, :, -1].isnan().all()


def test_memory_of_a_long_row_is_left_alone_where_a_program_asks_for_deterministic_operations():
    """Torch then writes NaN to all of it, so that every position would take memory at once."""
    config = random_t3("tts").config
    torch.use_deterministic_algorithms(True)
    try:
        kv = empty_kv(config, 2, 2**17, CPU, torch.bfloat16)
    finally:
        torch.use_deterministic_algorithms(False)
    assert kv.is_contiguous()
    assert not kv[..., ::1000, :].isnan().all()  # zeroes, or what an earlier test has left there
