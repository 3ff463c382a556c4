"""Speed changes keep pitch and loudness, give the right length, and do not depend on chunk sizes."""

import numpy as np
import pytest

from chatterbox_opt.audio.stretch import Stretch

RATE = 24_000
SPEEDS = [0.25, 0.5, 0.8, 1.25, 2.0, 4.0]


def voice(seconds=3.0):
    """Harmonics of a gliding pitch, in syllables."""
    t = np.arange(round(RATE * seconds)) / RATE
    phase = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.7 * t)) / RATE
    sound = sum(np.sin(k * phase) / k for k in range(1, 12))
    return (0.2 * sound * (0.55 + 0.45 * np.sin(2 * np.pi * 3 * t))).astype(np.float32)


def stretched(wave, speed, step=None):
    one = Stretch(speed, RATE)
    step = step or len(wave)
    return np.concatenate([*(one.add(wave[i : i + step]) for i in range(0, len(wave), step)), one.rest()])


@pytest.mark.parametrize("speed", SPEEDS)
def test_its_length_and_its_cuts(speed):
    wave = voice()
    out = stretched(wave, speed)
    assert len(out) == round(len(wave) / speed)
    for step in (1, 777, 24_000) if speed == 2.0 else (777,):
        assert np.array_equal(out, stretched(wave, speed, step))


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("hertz", [90.0, 220.0, 1500.0])
def test_the_pitch_stays(speed, hertz):
    wave = (0.4 * np.sin(2 * np.pi * hertz * np.arange(3 * RATE) / RATE)).astype(np.float32)
    out = stretched(wave, speed)
    spectrum = np.abs(np.fft.rfft(out * np.hanning(len(out)))) ** 2
    at = np.fft.rfftfreq(len(out), 1 / RATE)
    assert abs(at[spectrum.argmax()] - hertz) < 3
    near = abs(at - hertz) < 15
    assert spectrum[near].sum() > 0.98 * spectrum.sum()
    middle = out[2400:-2400]
    assert np.sqrt((middle**2).mean()) == pytest.approx(0.4 / np.sqrt(2), rel=0.03)


@pytest.mark.parametrize("speed", SPEEDS)
def test_syllables_keep_their_places(speed):
    """Loudness over time equals the input's, faster or slower."""
    wave = voice()
    out = stretched(wave, speed)

    def loudness(sound, frame):
        return np.sqrt((sound[: len(sound) // frame * frame].reshape(-1, frame) ** 2).mean(1))

    a, b = loudness(wave, 2400), loudness(out, round(2400 / speed))
    assert np.corrcoef(a[: len(b)], b[: len(a)])[0, 1] > 0.95


def test_what_follows_late_is_not_waited_for():
    """Of a chunk of 0.5 s less than 0.1 s is held back."""
    assert len(Stretch(1.5, RATE).add(voice(0.5))) > 0.4 * RATE / 1.5


def test_short_and_silent_sounds():
    assert len(stretched(np.zeros(0, np.float32), 2.0, 1)) == 0
    assert len(stretched(voice(0.01), 2.0)) == 120
    assert not stretched(np.zeros(RATE, np.float32), 1.7).any()


@pytest.mark.parametrize("speed", [0.2, 4.1, float("nan")])
def test_other_speeds_are_refused(speed):
    with pytest.raises(ValueError, match="speed="):
        Stretch(speed, RATE)
