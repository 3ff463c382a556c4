"""Encoded streams: bytes are sent as sound comes, and form a valid file for another decoder."""

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


def peak_correlation(a, b):
    """Returns the normalised correlation of two sounds at the best delay."""
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
    samples = decoded(data)
    assert abs(len(samples) - len(wave)) < 0.13 * RATE
    assert peak_correlation(samples, wave) > 0.99
    if kind in ("wav", "flac"):
        assert len(samples) == len(wave)
        assert abs(samples - wave).max() < 2e-4


def test_mp3_has_96_kbit_a_second():
    seconds = 20
    assert len(encoders.encode("mp3", tone(seconds), RATE)) == pytest.approx(12_000 * seconds, rel=0.01)


@pytest.mark.parametrize("kind", ["pcm", "wav", "flac", "mp3", "opus", "aac"])
def test_bytes_come_while_the_sound_does(kind):
    """Never more than two chunks of 0.08 s late."""
    if encoders.missing(kind):
        pytest.skip(encoders.missing(kind))
    parts = streamed(kind, tone())
    empty = [not part for part in parts]
    assert not any(a and b and c for a, b, c in zip(empty, empty[1:], empty[2:]))


def test_pcm_equals_the_library():
    import torch

    from chatterbox_opt.audio.io import pcm16

    wave = tone()
    assert b"".join(streamed("pcm", wave)) == pcm16(torch.from_numpy(wave)[None])


def test_a_wav_header_has_its_length_only_if_known():
    wave = tone(1.0)
    whole, parts = encoders.encode("wav", wave, RATE), b"".join(streamed("wav", wave))
    assert whole[4:8] == (len(whole) - 8).to_bytes(4, "little")
    assert whole[40:44] == (2 * RATE).to_bytes(4, "little")
    assert parts[4:8] == parts[40:44] == b"\xff\xff\xff\xff"
    assert whole[44:] == parts[44:]
    assert len(soundfile.read(io.BytesIO(parts))[0]) == RATE  # libsndfile reads to the end


def test_mp3s_can_be_joined():
    """No Xing or Info frame: a player that meets one in mid-stream stumbles."""
    data = b"".join(streamed("mp3", tone()))
    assert b"Xing" not in data
    assert b"Info" not in data
    assert abs(len(decoded(data + data)) - 4 * RATE) < 0.3 * RATE


def test_a_whole_flac_has_its_length():
    assert soundfile.info(io.BytesIO(encoders.encode("flac", tone(), RATE))).frames == 2 * RATE


@pytest.mark.parametrize("kind", ["pcm", "wav", "flac", "mp3", "opus", "aac"])
def test_a_whole_file_is_the_same_however_its_sound_comes(kind):
    if encoders.missing(kind):
        pytest.skip(encoders.missing(kind))
    wave = tone()
    encoder = encoders.ENCODERS[kind](RATE, whole=True)
    parts = [encoder.add(part) for part in (wave[:5], wave[5:30_000], wave[30_000:])] + [encoder.end()]
    if kind == "opus":  # the serial number of an Ogg stream is drawn at random
        assert np.array_equal(decoded(b"".join(parts)), decoded(encoders.encode(kind, wave, RATE)))
    else:
        assert b"".join(parts) == encoders.encode(kind, wave, RATE)


def test_an_empty_sound_is_a_file_too():
    for kind in encoders.available():
        assert isinstance(encoders.encode(kind, np.zeros(0, np.float32), RATE), bytes)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(encoders.importlib.util, "find_spec", lambda name: None)
    assert "chatterbox-opt[serve-opus]" in encoders.missing("opus")
    assert encoders.missing("wav") is None
    assert encoders.available() == ["flac", "wav", "pcm"]
