"""What 16 bits change in T3, in torch on the CPU, and whether float16's range is enough."""

from __future__ import annotations

import copy

import metrics
import pytest
import torch
from t3_pairs import full_depth, kl, some_history, torch_logits

from chatterbox_opt import EngineOptions, OptimizedChatterboxTTS

FLOAT16_MAX = torch.finfo(torch.float16).max


@pytest.fixture(scope="module")
def mini():
    return OptimizedChatterboxTTS.from_mini(engine=EngineOptions.exact(), enable_watermark=False)


def in_16_bits(t3, dtype: torch.dtype, *history) -> tuple[torch.Tensor, float]:
    """Returns logits, and the largest value that a module returns."""
    half, largest = copy.deepcopy(t3).to(dtype), [0.0]
    for part in half.modules():
        part.register_forward_hook(lambda part, given, out: largest.append(float(out.detach().abs().max())))
    return torch_logits(half, *history).float(), max(largest)


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 0.02), (torch.float16, 1e-3)])
@pytest.mark.parametrize("family", ["tts", "turbo"])
def test_16_bits_at_full_depth(family, dtype, most):
    t3 = full_depth(family)
    history = some_history(t3.config)
    got, largest = in_16_bits(t3, dtype, *history)
    divergence = kl(torch_logits(t3, *history), got)
    print(f"KL of {family}, {dtype}: {divergence:.2g} nats a token; values up to {largest:.0f}")
    assert 0 < divergence < most
    assert largest < FLOAT16_MAX / 16


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 1e-3), (torch.float16, 1e-5)])
def test_16_bits_in_a_trained_model(mini, dtype, most):
    """On the history that it speaks in float32."""
    sentence = metrics.SENTENCES[-8]
    history = mini.conds.t3, mini.pipeline.text_ids(sentence), mini.generate_tokens(sentence, seed=1)[:60]
    got, largest = in_16_bits(mini.t3.network, dtype, *history)
    divergence = kl(torch_logits(mini.t3.network, *history), got)
    print(f"KL of mini, {dtype}: {divergence:.2g} nats a token; values up to {largest:.0f}")
    assert 0 < divergence < most
    assert largest < FLOAT16_MAX / 16
