"""Options that are called exact: what is spoken with each equals what the reference speaks."""

import inspect
from pathlib import Path

import pytest
import torch

from chatterbox_opt import EngineOptions, OptimizedChatterboxTTS
from chatterbox_opt.engine.kernels import toom
from chatterbox_opt.engine.resolve import resolve

OTHER = {  # than exact mode's
    "attention": "auto", "compile": "trace", "slots": 2, "poll_every": 4, "prefix_cache": True,
    "few_rows": True, "short_convs": True, "kernels": True, "mel_bucket": 50, "wav_chunk": 120,
    "captures": ("step",), "trial": "here",
}  # fmt: skip
OF_A_GPU = {"attention", "poll_every", "kernels", "mel_bucket"}  # a CPU ignores them
BESIDE = {"captures": {"compile": "trace"}, "trial": {"compile": "trace"}}  # what they choose of


def test_every_exact_option_is_tested():
    lines = Path(inspect.getsourcefile(EngineOptions)).read_text().splitlines()
    assert set(OTHER) == {line.split(":")[0].strip() for line in lines if "  # exact. " in line}


def two_texts(options: EngineOptions) -> list:
    model = OptimizedChatterboxTTS.from_random(size="tiny", seed=0, engine=options, enable_watermark=False)
    return model.speak(model.jobs(["Hello there.", "And again, a little longer."], seeds=[1, 2], max_new_tokens=80))


@pytest.fixture(scope="module")
def exact():
    """Two texts, spoken by the reference."""
    return two_texts(EngineOptions.exact())


@pytest.mark.kernels
@pytest.mark.parametrize("field", OTHER)
def test_exact_options_change_nothing(field, exact, monkeypatch):
    monkeypatch.setattr(toom, "FEWEST", (8, 7))  # else it would not be for convolutions as small as these
    beside = BESIDE.get(field, {})
    changed = EngineOptions.exact(**beside, **{field: OTHER[field]})
    runs_otherwise = resolve(changed, "cpu") != resolve(EngineOptions.exact(**beside), "cpu")
    assert runs_otherwise == (field not in OF_A_GPU)
    for a, b in zip(exact, two_texts(changed), strict=True):
        assert torch.equal(a.tokens[0], b.tokens[0])
        assert (a.wav - b.wav).abs().max() < 1e-4
