"""The voice encoder in MLX against the one in torch, on the same weights and windows."""

import importlib.util
from pathlib import Path

import pytest
import torch
from hift_pairs import error
from threads import in_threads
from token_runs import NO_MLX

from chatterbox_opt import OptimizedChatterboxTTS
from chatterbox_opt.audio.io import read
from chatterbox_opt.config import VoiceEncoderConfig
from chatterbox_opt.models.voice_encoder import VoiceEncoder as TorchVoiceEncoder
from chatterbox_opt.models.voice_encoder import speaker_embedding
from chatterbox_opt.scores import Take, VoiceLikeness

if NO_MLX:
    pytest.skip(NO_MLX, allow_module_level=True)
from mlx_pairs import every_tensor_matters

from chatterbox_opt.mlx.voice_encoder import VoiceEncoder

SMALL = VoiceEncoderConfig(hidden=32, layers=2)


def by_torch(config: VoiceEncoderConfig) -> TorchVoiceEncoder:
    """Weights are three times the usual ones, so that gates open and close."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = TorchVoiceEncoder(config).eval().requires_grad_(False)
    for weight in encoder.parameters():
        weight.mul_(3)
    return encoder


def by_mlx(encoder: TorchVoiceEncoder, config: VoiceEncoderConfig) -> VoiceEncoder:
    return VoiceEncoder(config, encoder.state_dict().items())


def some_windows(count: int) -> torch.Tensor:
    return torch.rand(count, 160, 40, generator=torch.Generator().manual_seed(count))


def recordings() -> list[Path]:
    found = importlib.util.find_spec("s3tokenizer")
    return sorted((Path(found.origin).parent / "assets").glob("*.wav")) if found else []


@pytest.mark.skipif(not recordings(), reason="s3tokenizer, with its recordings, is not installed")
@torch.inference_mode()
def test_torchs_embedding_of_recorded_voices():
    """At the published size."""
    config = VoiceEncoderConfig()
    theirs, embeddings = by_torch(config), []
    ours = by_mlx(theirs, config)
    for file in recordings():
        wav, rate = read(file)
        assert rate == 16_000
        wanted = speaker_embedding(theirs, wav)
        assert error(speaker_embedding(ours, wav), wanted) < 1e-4
        embeddings.append(wanted)
    assert error(*embeddings) > 20 * 1e-4, "voices that are alike would prove nothing"


@torch.inference_mode()
def test_each_window_is_torchs_alone_and_in_a_batch():
    theirs, windows = by_torch(SMALL), some_windows(5)
    ours, wanted = by_mlx(theirs, SMALL), theirs(windows)
    assert error(ours(windows), wanted) < 1e-4
    for window, row in zip(windows, wanted):
        assert error(ours(window[None]), row[None]) < 1e-4


def test_every_tensor_matters():
    every_tensor_matters(by_torch(SMALL), lambda other: by_mlx(other, SMALL)(some_windows(2)))


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_tensors_are_neither_left_out_nor_passed_over(change):
    named = dict(by_torch(SMALL).state_dict())
    if change == "missing":
        del named["proj.bias"]
    else:
        named["proj.bias2"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"proj\.bias"):
        VoiceEncoder(SMALL, named.items())


def test_a_voice_is_prepared_through_mlx_on_any_thread():
    """It equals torch's, and the likeness of a take is computed on this device too."""
    wav = 0.1 * torch.randn(24_000 * 6, generator=torch.Generator().manual_seed(0)).numpy()
    model = OptimizedChatterboxTTS.from_random("mlx")
    assert isinstance(model.voices.ve, VoiceEncoder)
    (voice,) = in_threads(lambda: model.prepare_voice(wav, sample_rate=24_000))
    wanted = OptimizedChatterboxTTS.from_random("cpu").prepare_voice(wav, sample_rate=24_000)
    assert error(voice.t3.speaker_emb, wanted.t3.speaker_emb) < 1e-4
    take = Take("", "", torch.zeros(0), "eos", 0, voice, 24_000, torch.from_numpy(wav)[None])
    assert VoiceLikeness(model)(take) > 0.9
