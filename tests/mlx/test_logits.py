"""T3 in MLX against T3 in torch, on the same weights."""

import pytest
from t3_pairs import full_depth, random_t3, some_history, torch_logits
from token_runs import NO_MLX

from chatterbox_opt.models.t3 import T3

if NO_MLX:
    pytest.skip(NO_MLX, allow_module_level=True)
from mlx_pairs import every_tensor_matters, mlx_logits, of_torch


def largest_difference(t3: T3) -> float:
    """Returns the largest difference of a logit, by the largest logit."""
    history = some_history(t3.config)
    wanted, got = torch_logits(t3, *history), mlx_logits(of_torch(t3), *history)
    assert wanted.std() > 1, "flat logits would prove nothing"
    return float((got - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("family", ["tts", "mtl", "turbo", "nano"])
def test_same_logits_over_text_and_speech(family):
    assert largest_difference(random_t3(family)) < 1e-5


@pytest.mark.parametrize("family", ["tts", "turbo"])
def test_same_logits_at_full_depth(family):
    assert largest_difference(full_depth(family)) < 1e-5


@pytest.mark.parametrize("family", ["tts", "turbo"])
def test_every_tensor_matters(family):
    t3 = random_t3(family)
    history = some_history(t3.config, n=9, steps=3)
    every_tensor_matters(t3, lambda other: mlx_logits(of_torch(other), *history))
