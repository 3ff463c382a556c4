"""Decoding equals librosa's, resampling torchaudio's and soxr's; bad files give errors that name them."""

import io as std_io
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from chatterbox_opt.audio import io
from chatterbox_opt.audio.io import describe, fingerprint, read, resample, write_wav

RATES = [(24_000, 16_000), (16_000, 24_000), (44_100, 24_000), (48_000, 24_000), (22_050, 24_000), (8_000, 24_000)]


def sound(seconds: float = 0.5, rate: int = 24_000, channels: int = 1) -> np.ndarray:
    t = np.arange(int(seconds * rate))[:, None] / rate
    return (0.3 * np.sin(2 * np.pi * (220 + 110 * np.arange(channels)) * t)).astype(np.float32)


# ---- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2)])
def test_files_are_read_as_librosa_reads_them(tmp_path: Path, kind: str, rate: int, channels: int):
    librosa = pytest.importorskip("librosa")
    path = tmp_path / f"a.{kind}"
    soundfile.write(path, sound(0.5, rate, channels), rate)
    wav, got = read(path)
    theirs, _ = librosa.load(path, sr=None)
    assert got == rate
    assert wav.dtype == torch.float32
    np.testing.assert_allclose(wav.numpy(), theirs, atol=1e-7)
    part, _ = read(path, seconds=0.2)
    assert len(part) == int(0.2 * rate)
    np.testing.assert_allclose(part.numpy(), theirs[: len(part)], atol=1e-7)


def test_samples_of_any_layout_and_type():
    two = sound(0.1, channels=2)
    mono = two.mean(1)
    for given in (mono, mono.tolist(), two, two.T, torch.from_numpy(two.T.copy()), two.astype(np.float64)):
        wav, rate = read(given, 24_000)
        assert rate == 24_000
        np.testing.assert_allclose(wav.numpy(), mono, atol=1e-6)
    for dtype in (np.int16, np.int32, np.uint8):
        scale, middle = 2.0 ** (8 * dtype().itemsize - 1), 128 if dtype is np.uint8 else 0
        wav, _ = read(np.round(mono * scale + middle).astype(dtype), 24_000)
        np.testing.assert_allclose(wav.numpy(), mono, atol=1.0 / scale + 1e-6)
    wav, _ = read(torch.from_numpy(mono).bfloat16(), 24_000)
    np.testing.assert_allclose(wav.numpy(), mono, atol=2e-3)


def test_open_files(tmp_path: Path):
    soundfile.write(tmp_path / "a.wav", sound(), 24_000)
    data = std_io.BytesIO((tmp_path / "a.wav").read_bytes())
    assert fingerprint(data) == fingerprint(tmp_path / "a.wav")
    assert torch.equal(read(data)[0], read(tmp_path / "a.wav")[0])


def test_fingerprint_follows_the_content(tmp_path: Path):
    a, b, c = tmp_path / "a.wav", tmp_path / "b.wav", tmp_path / "c.wav"
    for path, samples in ((a, sound()), (b, sound()), (c, sound() * 0.5)):
        soundfile.write(path, samples, 24_000)
    assert fingerprint(a) == fingerprint(str(b)) != fingerprint(c)
    wav = sound()[:, 0]
    assert fingerprint(wav, 24_000) == fingerprint(torch.from_numpy(wav), 24_000) != fingerprint(wav, 16_000)


def damaged(tmp_path: Path, kind: str, keep: float) -> Path:
    path = tmp_path / f"cut.{kind}"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 48_000), 24_000)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def test_a_file_cut_short_is_used_as_far_as_it_goes(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    wav, rate = read(damaged(tmp_path, "wav", 0.5))
    assert abs(len(wav) / rate - 1.0) < 0.01
    assert "cut short" in caplog.text


def test_bad_files(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.wav.*no such file"):
        read(tmp_path / "nothing.wav")
    with pytest.raises(ValueError, match="folder"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="this is a pipe or a device"):
        read(tmp_path / "pipe")
    (tmp_path / "empty.wav").touch()
    with pytest.raises(ValueError, match="empty"):
        read(tmp_path / "empty.wav")
    (tmp_path / "text.wav").write_text("hello " * 100)
    with pytest.raises(ValueError, match=r"not a recording.*ffmpeg"):
        read(tmp_path / "text.wav")
    for kind, keep in (("flac", 0.5), ("ogg", 0.001), ("wav", 0.0001)):
        with pytest.raises(ValueError, match=r"cut short|no samples"):
            read(damaged(tmp_path, kind, keep))
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 24_000)
    with pytest.raises(ValueError, match="no samples"):
        read(tmp_path / "none.wav")
    soundfile.write(tmp_path / "fast.wav", np.zeros(5000), 10_000_000)
    with pytest.raises(ValueError, match=r"fast\.wav.*10000000 Hz"):
        read(tmp_path / "fast.wav")
    bad = sound()
    bad[100] = np.nan
    soundfile.write(tmp_path / "nan.wav", bad, 24_000, subtype="FLOAT")
    with pytest.raises(ValueError, match="NaN"):
        read(tmp_path / "nan.wav")
    soundfile.write(tmp_path / "loud.wav", np.full((100, 2), [1e30, -1e30]), 24_000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"loud\.wav: its samples reach 1e\+30; floats lie within -1 to 1"):
        read(tmp_path / "loud.wav")


@pytest.mark.parametrize("reading", [read, describe])
def test_an_open_file_that_is_no_recording_is_named_in_words(reading):
    with tempfile.SpooledTemporaryFile() as file:
        file.write(b"hello " * 100)
        file.seek(0)
        with pytest.raises(ValueError, match=r"^the open file: not a recording.*\(Format not recognised\)") as caught:
            reading(file)
    assert "object at" not in str(caught.value)


def test_samples_without_a_header_are_told(tmp_path: Path):
    """libsndfile goes by the name, and asks for what a header would say."""
    path = tmp_path / "speech.raw"
    path.write_bytes(bytes(48_000))
    told = r"not a recording.*\(a name in \.raw says that it has no header\); wav, flac"
    with pytest.raises(ValueError, match=rf"speech\.raw: {told}"):
        read(path)
    with open(path, "rb") as file:
        for reading in (read, describe):
            with pytest.raises(ValueError, match=told):
                reading(file)


def test_a_recording_that_does_not_say_how_long_it_is(tmp_path: Path):
    file = tmp_path / "a.flac"
    soundfile.write(file, sound(), 24_000)
    data = bytearray(file.read_bytes())
    data[21] &= 0xF0  # of the 36 bits of its number of samples, which begin here
    data[22:26] = bytes(4)
    file.write_bytes(data)
    with pytest.raises(ValueError, match="does not say how long it is"):
        read(file)
    assert len(read(file, seconds=0.1)[0]) == 2400


def test_bad_samples():
    wav = sound()[:, 0]
    for rate in (None, 0, -1, 24_000.5, True):
        with pytest.raises(ValueError, match="sample_rate"):
            read(wav, rate)
    with pytest.raises(ValueError, match="states its own rate"):
        read("a.wav", 24_000)
    for given in (None, 3, object(), np.zeros((20, 30)), np.zeros((2, 2, 2)), ["abc"], wav + 1j):
        with pytest.raises(ValueError, match="shape"):
            read(given, 24_000)
    for none in (wav[:0], np.zeros((0, 100)), np.zeros((100, 0), np.int16)):
        with pytest.raises(ValueError, match="no samples"):
            read(none, 24_000)
    with pytest.raises(ValueError, match="NaN or infinite"):
        read(np.full(100, np.inf), 24_000)
    for given in (np.round(wav * 32767).astype(np.int64), np.round(wav * 32767).astype(int).tolist()):
        with pytest.raises(ValueError, match="give int16"):
            read(given, 24_000)
    with pytest.raises(ValueError, match="samples reach 32767; floats lie within -1 to 1"):
        read(np.full(100, -32767.0), 24_000)


# ---- resampling ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("orig", "new"), RATES)
def test_plain_resampling_is_torchaudios(orig: int, new: int):
    functional = pytest.importorskip("torchaudio.functional")
    for n in (5000, 5001, 7):
        wav = torch.randn(2, n) * 0.2
        ours, theirs = resample(wav, orig, new), functional.resample(wav, orig, new)
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize(("orig", "new"), RATES)
def test_exact_resampling_is_librosas_and_sharp_is_close(orig: int, new: int):
    librosa = pytest.importorskip("librosa")
    wav = torch.randn(6001) * 0.2
    theirs = torch.from_numpy(librosa.resample(wav.numpy(), orig_sr=orig, target_sr=new))
    assert torch.equal(resample(wav, orig, new, exact=True), theirs)
    ours = resample(wav, orig, new, sharp=True)
    assert ours.shape == theirs.shape
    inner = slice(400, -400)  # the ends differ in what they take for silence
    assert (ours - theirs)[inner].pow(2).mean().sqrt() <= 3e-3 * theirs.std()  # 50 dB, of white noise


def test_rates_with_no_common_divisor_take_little_memory(monkeypatch: pytest.MonkeyPatch):
    wav = torch.randn(2, 3001) * 0.2
    want = [resample(wav, 441, 320, sharp=s) for s in (False, True)]
    assert resample(wav, 44_101, 24_000).shape == (2, -(-3001 * 24_000 // 44_101))
    monkeypatch.setattr(io, "DENSE_KERNEL", 0)
    monkeypatch.setattr(io, "PHASES_AT_ONCE", 500)
    monkeypatch.setattr(io, "WEIGHTS_AT_ONCE", 10_000)
    computed, sinc = [], io._sinc
    monkeypatch.setattr(io, "_sinc", lambda time, *how: computed.append(time.size) or sinc(time, *how))
    for sharp, theirs in zip((False, True), want):
        torch.testing.assert_close(resample(wav, 441, 320, sharp=sharp), theirs, atol=1e-5, rtol=0)
    assert max(computed) <= 10_000


def test_the_same_rate_is_the_same_tensor():
    wav = torch.randn(10)
    assert resample(wav, 24_000, 24_000) is wav


# ---- writing -------------------------------------------------------------------------------------


def test_minutes_of_vorbis(tmp_path: Path):
    """Written in blocks: libsndfile crashes the process on one large block."""
    write_wav(tmp_path / "long.ogg", torch.zeros(24_000 * 100), 24_000)
    assert read(tmp_path / "long.ogg")[0].shape == (24_000 * 100,)


def test_what_is_written_can_be_read(tmp_path: Path):
    wav = torch.from_numpy(sound().T)
    for name in ("a.wav", "a.flac", "a"):
        write_wav(tmp_path / name, wav, 24_000)
        got, rate = read(tmp_path / name)
        assert rate == 24_000
        torch.testing.assert_close(got, wav[0], atol=1e-4, rtol=0)
    write_wav(tmp_path / "loud.wav", wav * 10, 24_000)
    assert read(tmp_path / "loud.wav")[0].abs().max() <= 1.0
    for name in ("no/folder.wav", "a.xyz"):
        with pytest.raises(ValueError, match="cannot be written"):
            write_wav(tmp_path / name, wav, 24_000)
