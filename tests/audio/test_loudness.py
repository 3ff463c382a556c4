"""BS.1770 against pyloudnorm, which upstream levels Turbo's prompts with."""

import math

import numpy as np
import pytest
import torch

from chatterbox_opt.audio.loudness import CEILING, integrated_loudness, level_loudness, normalize_loudness


def tone(seconds: float, rate: int, level: float = 0.1) -> np.ndarray:
    t = np.arange(int(seconds * rate)) / rate
    swell = 0.05 + np.abs(np.sin(2 * np.pi * 0.3 * t))  # some blocks fall below the gates
    return (level * swell * (np.sin(2 * np.pi * 220 * t) + 0.3 * np.sin(2 * np.pi * 3100 * t))).astype(np.float32)


@pytest.mark.parametrize("rate", [16_000, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("seconds", [0.4, 0.45, 1.0, 6.37])
def test_is_pyloudnorms(rate: int, seconds: float):
    meter = pytest.importorskip("pyloudnorm").Meter(rate)
    wav = tone(seconds, rate)
    wav[len(wav) // 2 :] *= 0.01
    assert integrated_loudness(wav, rate) == pytest.approx(meter.integrated_loudness(wav), abs=1e-4)


def test_two_channels_and_what_is_no_float_as_pyloudnorm_has_them(caplog: pytest.LogCaptureFixture):
    meter = pytest.importorskip("pyloudnorm").Meter(24_000)
    two = np.stack([tone(2.0, 24_000), tone(2.0, 24_000, 0.03)], 1)
    assert integrated_loudness(two, 24_000) == pytest.approx(meter.integrated_loudness(two), abs=1e-4)
    assert normalize_loudness(two, 24_000).shape == two.shape
    whole = (two[:, 0] * 32767).astype(np.int16)
    for given in (whole, torch.from_numpy(whole), whole.tolist()):
        assert normalize_loudness(given, 24_000) is given
    assert len(caplog.records) == 3


def test_gain_is_upstreams_in_float32():
    pyloudnorm = pytest.importorskip("pyloudnorm")
    wav = tone(3.0, 24_000)
    gain = 10.0 ** ((-27 - pyloudnorm.Meter(24_000).integrated_loudness(wav)) / 20.0)
    ours = normalize_loudness(wav, 24_000)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, wav * gain, rtol=1e-5)
    tensor = normalize_loudness(torch.from_numpy(wav), 24_000)
    assert tensor.dtype == torch.float32
    np.testing.assert_allclose(tensor.numpy(), ours, rtol=1e-6)
    assert integrated_loudness(ours, 24_000) == pytest.approx(-27.0, abs=1e-3)


def test_what_cannot_be_measured_stays(caplog: pytest.LogCaptureFixture):
    short, silent = tone(0.3, 24_000), np.zeros(24_000, dtype=np.float32)
    assert math.isnan(integrated_loudness(short, 24_000))
    assert integrated_loudness(silent, 24_000) == -math.inf
    for wav in (short, silent):
        assert np.array_equal(normalize_loudness(wav, 24_000), wav)
    assert len(caplog.records) == 2


def test_pieces_are_evened():
    parts = [torch.from_numpy(tone(2.0, 24_000, level)) for level in (0.01, 0.1, 0.3)]
    got = level_loudness(parts, 24_000, -26.0)
    assert [integrated_loudness(p.numpy(), 24_000) for p in got] == pytest.approx([-26.0] * 3, abs=0.01)


def test_what_cannot_be_measured_is_scaled_as_the_others():
    loud, short = torch.from_numpy(tone(2.0, 24_000)), torch.full((2400,), 0.1)
    got = level_loudness([loud, short, torch.zeros(24_000)], 24_000, -20.0)
    gain = float(got[0].abs().max() / loud.abs().max())
    assert torch.allclose(got[1], short * gain)
    assert not got[2].any()
    assert level_loudness([short], 24_000, -20.0)[0] is short


def test_no_peak_is_lifted_into_clipping():
    peaky = torch.from_numpy(tone(2.0, 24_000, 0.01))
    peaky[1000] = 0.8
    assert float(level_loudness([peaky], 24_000, -16.0)[0].abs().max()) == pytest.approx(CEILING)
    full = torch.from_numpy(tone(2.0, 24_000, 0.01))
    full[1000] = 0.99
    assert torch.equal(level_loudness([full], 24_000, -10.0)[0], full), "nor is one brought down for being there"
