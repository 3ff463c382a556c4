"""Bytes come with the sound, and are a valid file together, decoded by somebody else's decoder."""

import io

import numpy as np
import pytest
import soundfile

from chatterbox_opt.serve import encoders

RATE = 24_000


def tone(seconds=2.0):
    t = np.arange(round(RATE * seconds)) / RATE
    return (0.4 * np.sin(2 * np.pi * 220 * t) * np.sin(2 * np.pi * 1.5 * t)).astype(np.float32)


def streamed(kind, wave, step=1920):
    encoder = encoders.ENCODERS[kind](RATE)
    return [encoder.add(wave[i : i + step]) for i in range(0, len(wave), step)] + [encoder.end()]


def decoded(data):
    av = pytest.importorskip("av")
    with av.open(io.BytesIO(data)) as file:
        resampler = av.AudioResampler("flt", "mono", RATE)
        frames = [out for frame in file.decode(audio=0) for out in resampler.resample(frame)]
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])


def likeness(a, b):
    """Of two sounds, one of which may be late."""
    n = 1 << (len(a) + len(b)).bit_length()
    both = np.fft.irfft(np.fft.rfft(a, n) * np.conj(np.fft.rfft(b, n)), n)
    return both.max() / np.sqrt((a**2).sum() * (b**2).sum())


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "opus", "aac"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_file_is_valid_and_sounds_the_same(kind, whole):
    if encoders.missing(kind):
        pytest.skip(encoders.missing(kind))
    wave = tone()
    data = encoders.encode(kind, wave, RATE) if whole else b"".join(streamed(kind, wave))
    heard = decoded(data)
    assert abs(len(heard) - len(wave)) < 0.13 * RATE
    assert likeness(heard, wave) > 0.99
    if kind in ("wav", "flac"):
        assert len(heard) == len(wave)
        assert abs(heard - wave).max() < 2e-4


@pytest.mark.parametrize("kind", ["pcm", "wav", "flac", "mp3", "opus", "aac"])
def test_bytes_come_while_the_sound_does(kind):
    """Never more than 0.2 s behind: a listener hears the first chunk when it is made."""
    if encoders.missing(kind):
        pytest.skip(encoders.missing(kind))
    parts = streamed(kind, tone())
    empty = [not part for part in parts]
    assert not any(a and b and c for a, b, c in zip(empty, empty[1:], empty[2:]))


def test_pcm_is_the_librarys():
    import torch

    from chatterbox_opt.audio.io import pcm16

    wave = tone()
    assert b"".join(streamed("pcm", wave)) == pcm16(torch.from_numpy(wave)[None])


def test_a_wav_says_its_length_where_it_is_known_and_that_it_is_not_otherwise():
    wave = tone(1.0)
    whole, parts = encoders.encode("wav", wave, RATE), b"".join(streamed("wav", wave))
    assert whole[4:8] == (len(whole) - 8).to_bytes(4, "little")
    assert whole[40:44] == (2 * RATE).to_bytes(4, "little")
    assert parts[4:8] == parts[40:44] == b"\xff\xff\xff\xff"
    assert whole[44:] == parts[44:]
    assert len(soundfile.read(io.BytesIO(parts))[0]) == RATE  # libsndfile reads to the end


def test_mp3s_may_be_joined():
    """No Xing or Info frame: a player that meets one in mid-stream stumbles."""
    data = b"".join(streamed("mp3", tone()))
    assert b"Xing" not in data
    assert b"Info" not in data
    assert abs(len(decoded(data + data)) - 4 * RATE) < 0.3 * RATE


def test_a_whole_flac_says_its_length():
    assert soundfile.info(io.BytesIO(encoders.encode("flac", tone(), RATE))).frames == 2 * RATE


def test_an_empty_sound_is_a_file_too():
    for kind in encoders.available():
        assert isinstance(encoders.encode(kind, np.zeros(0, np.float32), RATE), bytes)


def test_what_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr(encoders.importlib.util, "find_spec", lambda name: None)
    assert "chatterbox-opt[serve-opus]" in encoders.missing("opus")
    assert encoders.missing("wav") is None
    assert encoders.available() == ["flac", "wav", "pcm"]
