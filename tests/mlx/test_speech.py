"""The small trained model speaks through MLX: equal to torch in float32, and what fewer bits cost."""

from __future__ import annotations

import pytest
import torch
from hift_pairs import error
from t3_pairs import kl
from token_runs import NO_MLX

from chatterbox_opt import EngineOptions, OptimizedChatterboxTTS

if NO_MLX:
    pytest.skip(NO_MLX, allow_module_level=True)
import metrics
from mlx_pairs import mlx_logits, of_torch

from chatterbox_opt.mlx.mel import MlxMelRunner
from chatterbox_opt.mlx.wav import MlxWavRunner
from chatterbox_opt.reading.plan import weights

TEXTS = metrics.SENTENCES[-8:]
FLOAT32 = EngineOptions.exact()


def mini(device: str, **how) -> OptimizedChatterboxTTS:
    return OptimizedChatterboxTTS.from_mini(device, **{"engine": FLOAT32, "enable_watermark": False, **how})


@pytest.fixture(scope="module")
def by_torch():
    return mini("cpu")


def test_mini_says_through_mlx_what_it_says_through_torch(by_torch):
    """The same tokens, and the sound to 1e-4 of its peak."""
    by_mlx, how = mini("mlx"), dict(seed=3)
    assert isinstance(by_mlx.pipeline.mel, MlxMelRunner)
    assert isinstance(by_mlx.pipeline.wav, MlxWavRunner)
    assert torch.equal(by_mlx.generate_tokens(TEXTS[1], **how), by_torch.generate_tokens(TEXTS[1], **how))
    assert error(by_mlx.generate("Hello there.", **how), by_torch.generate("Hello there.", **how)) < 1e-4
    assert error(*(torch.cat(list(m.generate_stream("Hello there.", **how)), 1) for m in (by_mlx, by_torch))) < 1e-4


@pytest.mark.parametrize(
    ("dtype", "quantize", "most"),
    [("float32", None, 1e-9), ("bfloat16", None, 1e-2), ("float16", None, 1e-3), ("bfloat16", "int8", 0.02),
     ("bfloat16", "int4", 0.5)],
)
def test_what_fewer_bits_cost(by_torch, dtype, quantize, most):
    """On the history of the exact model; the conditional row."""
    t3, cond = by_torch.t3.network, by_torch.conds.t3
    ids = by_torch.pipeline.text_ids(TEXTS[0])
    speech = by_torch.generate_tokens(TEXTS[0], seed=1)[:60]
    exact, got = (mlx_logits(of_torch(t3, *how), cond, ids, speech)[0] for how in ((), (dtype, quantize)))
    apart = kl(exact, got)
    print(f"KL of {dtype}, {quantize or 'not packed'}: {apart:.2g} nats a token")
    assert apart < most


@pytest.mark.slow
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_words_are_heard_through_mlx(quantize, by_torch):
    if missing := metrics.Listener.missing():
        pytest.skip(missing)
    listener, options = metrics.Listener(), EngineOptions(dtype="float32", s3gen_dtype="float32", quantize=quantize)

    def errors(model) -> float:
        speech = model.speak(model.jobs(TEXTS, seeds=range(len(TEXTS))))
        assert all(s.stops == ["eos"] for s in speech)
        return metrics.word_error_rate([(t, listener.hear(s.wav[0], 24_000)) for t, s in zip(TEXTS, speech)])

    assert errors(mini("mlx", engine=options)) <= errors(by_torch) + 0.02


def test_a_book_knows_its_weights():
    """Paragraphs are stored under a key that includes the weights, packed ones too."""
    keys = [weights(OptimizedChatterboxTTS.from_random("mlx", seed=seed, quantize="int8")) for seed in (0, 0, 1)]
    assert keys[0] == keys[1] != keys[2]
