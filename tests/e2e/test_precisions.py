"""Every precision of T3's weights."""

import pytest
import torch

from chatterbox_opt import EngineOptions, OptimizedChatterboxTTS

pytestmark = pytest.mark.kernels
MAKE = {"random": OptimizedChatterboxTTS.from_random, "mini": OptimizedChatterboxTTS.from_mini}


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("weights", MAKE)
def test_a_request_draws_the_same_tokens_twice(weights, dtype, quantize):
    """Whatever was spoken in between: a longer text without guidance, or several in a batch."""
    model = MAKE[weights](engine=EngineOptions(dtype=dtype, s3gen_dtype="float32"), quantize=quantize)

    def tokens(seed):
        return model.generate_tokens("Hello there, you.", seed=seed, max_new_tokens=24)

    first = tokens(seed=1)
    assert not torch.equal(first, tokens(seed=2))
    model.generate_tokens("A rather longer sentence, with a comma in it.", seed=3, cfg_weight=0.0, max_new_tokens=40)
    assert torch.equal(first, tokens(seed=1))
    model.generate_batch(["One.", "Two, or more.", "Three."], seeds=[1, 2, 3], max_new_tokens=6, n_cfm_timesteps=1)
    assert torch.equal(first, tokens(seed=1))
