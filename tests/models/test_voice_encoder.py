"""Speaker embedding: windows and trimming as upstream's, the same network on the same weights."""

import numpy as np
import pytest
import torch

from chatterbox_opt.config import VoiceEncoderConfig
from chatterbox_opt.models.voice_encoder import VoiceEncoder, cut, speaker_embedding, trim
from chatterbox_opt.weights.keymap import VOICE_ENCODER

pytestmark = pytest.mark.kernels


def speech(seconds: float, silence: float = 0.5) -> torch.Tensor:
    """Noise with a slow beat, in silence."""
    t = torch.arange(int(seconds * 16_000)) / 16_000
    loud = torch.randn(len(t)) * 0.1 * (0.3 + torch.sin(2 * torch.pi * 1.5 * t).abs())
    quiet = torch.randn(int(silence * 16_000)) * 1e-3
    return torch.cat([quiet, loud, quiet])


@pytest.fixture
def pair(upstream):
    from upstream_tiny import converted, voice_encoder

    cfg = VoiceEncoderConfig(layers=3)
    theirs = voice_encoder(cfg).eval()
    return converted(theirs, VoiceEncoder, cfg, VOICE_ENCODER), theirs


@pytest.mark.parametrize("seconds", [0.3, 1.6, 3.0, 7.3])
def test_embedding_is_upstreams(pair, seconds: float):
    ours, theirs = pair
    wav = speech(seconds)
    with torch.inference_mode():
        mine = speaker_embedding(ours, wav)
    other = torch.from_numpy(theirs.embeds_from_wavs([wav.numpy()], sample_rate=16_000)).mean(0, keepdim=True)
    assert mine.shape == (1, 256)
    assert (mine - other).abs().max() <= 1e-5 * other.abs().max()


def test_windows_are_upstreams(upstream):
    from chatterbox.models.voice_encoder import VoiceEncConfig
    from chatterbox.models.voice_encoder.voice_encoder import stride_as_partials

    for frames in (1, 80, 159, 160, 161, 204, 205, 206, 237, 400, 1001):
        mel = torch.randn(frames, 40)
        theirs = stride_as_partials(mel.numpy(), VoiceEncConfig(), rate=1.3)
        assert np.array_equal(cut(mel).numpy(), theirs), frames


def test_trim_is_librosas():
    librosa = pytest.importorskip("librosa")
    edge = torch.zeros(8192)
    edge[-600:] = 0.5
    for wav in (speech(1.0), speech(2.03, 0.01), torch.zeros(5000), torch.ones(4096), edge, speech(0.5)[3000:11_777]):
        assert np.array_equal(trim(wav).numpy(), librosa.effects.trim(wav.numpy(), top_db=20)[0])


def test_trim_keeps_what_the_mel_needs():
    click = torch.zeros(4096 + 10)
    click[-10:] = 1.0
    assert len(trim(click)) >= 401


def test_many_windows_are_taken_in_parts(pair, monkeypatch: pytest.MonkeyPatch):
    ours, _ = pair
    wav = speech(6.0)
    with torch.inference_mode():
        whole = speaker_embedding(ours, wav)
        monkeypatch.setattr("chatterbox_opt.models.voice_encoder.WINDOWS_AT_ONCE", 2)
        torch.testing.assert_close(speaker_embedding(ours, wav), whole)
