"""Voice conversion behind a prompt that ends with half a token's mel, as that of a recording may."""

import pytest
import torch

from chatterbox_opt import OptimizedChatterboxVC
from chatterbox_opt.config import SAMPLES_PER_FRAME, SAMPLES_PER_TOKEN
from chatterbox_opt.vc import OVERLAP, cross_faded, overlapping

LONG = 700  # tokens, 28 s: two pieces


@pytest.mark.parametrize("odd", [0, 1], ids=["even", "odd"])
def test_long_conversion_behind_an_odd_prompt_keeps_in_step(odd, monkeypatch):
    """Both pieces follow the prompt directly: samples match tokens, and the same tokens overlap."""
    model = OptimizedChatterboxVC.from_random(size="tiny", enable_watermark=False)
    voice = dict(model.ref_dict)
    pairs = 2 * voice["prompt_token"].shape[1]
    mel = voice["prompt_feat"][:, :pairs]
    voice["prompt_feat"] = torch.cat([mel, mel[:, :odd]], 1)
    model.ref_dict = voice
    tokens = torch.arange(LONG) % 50
    monkeypatch.setattr(model, "tokens", lambda *_: tokens)
    lengths = []

    def joined(parts):
        lengths.extend(map(len, parts))
        return cross_faded(parts)

    monkeypatch.setattr("chatterbox_opt.vc.cross_faded", joined)
    wav = model.generate(None, seed=0, n_cfm_timesteps=1)
    assert lengths == [len(part) * SAMPLES_PER_TOKEN for part in overlapping(tokens)]
    assert len(lengths) == 2
    assert wav.shape == (1, LONG * SAMPLES_PER_TOKEN)
    assert sum(lengths) - wav.shape[1] == int(OVERLAP * model.sr)


def test_a_short_conversion_behind_an_odd_prompt_is_upstreams():
    """In one piece, shorter by the frame that the prompt has too many."""
    model = OptimizedChatterboxVC.from_random(size="tiny", enable_watermark=False)
    mel = model.ref_dict["prompt_feat"]
    model.ref_dict = model.ref_dict | {"prompt_feat": torch.cat([mel, mel[:, :1]], 1)}
    recording = 0.1 * torch.randn(16_000)
    wav = model.generate(recording, sample_rate=16_000, seed=0)
    assert wav.shape == (1, 25 * SAMPLES_PER_TOKEN - SAMPLES_PER_FRAME)
    assert torch.equal(wav, model.pipeline.render([model.tokens(recording, 16_000)], model.ref_dict, 0))
