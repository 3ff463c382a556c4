"""The four spectrograms against the libraries that the checkpoints were trained with."""

import numpy as np
import pytest
import torch

from chatterbox_opt.models import mel

pytestmark = pytest.mark.kernels


def noise(n: int) -> torch.Tensor:
    return torch.randn(n) * 0.1


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize(("rate", "n_fft", "bins", "top"), [(24_000, 1920, 80, 8000.0), (16_000, 400, 128, 8000.0),
                                                          (16_000, 400, 40, 8000.0), (22_050, 512, 20, 900.0)])
def test_filters_are_librosas(rate: int, n_fft: int, bins: int, top: float):
    librosa = pytest.importorskip("librosa")
    theirs = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=bins, fmin=0, fmax=top)
    np.testing.assert_allclose(mel.slaney_filters(rate, n_fft, bins, top), theirs, atol=1e-6, rtol=1e-6)


def test_prompt_mel_is_upstreams(upstream):
    from chatterbox.models.s3gen.utils.mel import mel_spectrogram

    for n in (24_000, 24_479, 24_480, 721):
        wav = noise(n)
        close(mel.prompt_mel(wav), mel_spectrogram(wav[None])[0])


def test_s3_mel_is_upstreams(upstream):
    from upstream_tiny import s3_tokenizer

    from chatterbox_opt.config import tiny

    theirs = s3_tokenizer(tiny("tts").s3_tokenizer)
    for n in (16_000, 16_159, 401):
        wav = noise(n)
        wav[: n // 2] *= 1e-4  # below the floor of 80 dB under the loudest bin
        close(mel.s3_mel(wav), theirs.log_mel_spectrogram(wav[None])[0])


def test_voice_mel_is_upstreams(upstream):
    from chatterbox.models.voice_encoder import VoiceEncConfig
    from chatterbox.models.voice_encoder.melspec import melspectrogram

    for n in (16_000, 16_159, 401):
        wav = noise(n)
        close(mel.voice_mel(wav), torch.from_numpy(melspectrogram(wav.numpy(), VoiceEncConfig()).T))


def test_fbank_is_kaldis():
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi")
    for n in (16_000, 16_159, 400):
        wav = noise(n)
        theirs = kaldi.fbank(wav[None], num_mel_bins=80)
        ours = mel.kaldi_fbank(wav)
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs - theirs.mean(0, keepdim=True), atol=1e-4, rtol=0)


def test_constants_outlive_inference_mode_and_meta():
    mel._constant.cache_clear()
    with torch.inference_mode(), torch.device("meta"):
        made = mel._constant("s3 filters", torch.device("cpu"))
    assert made.device.type == "cpu"
    assert not made.is_inference()
    assert mel._constant("s3 filters", torch.device("cpu")) is made
