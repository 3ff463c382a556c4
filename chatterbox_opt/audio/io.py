"""Reading recordings as mono, resampling, and writing sound files."""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)

READABLE = "wav, flac, ogg and mp3 can be read; anything else becomes one with `ffmpeg -i IN out.wav`"
NO_LENGTH = f"{{}}: it does not say how long it is; {READABLE}"
MAX_CHANNELS = 8
RATES = (1000, 768_000)  # Hz; the work for a rate without a common divisor grows with it
MOST_FRAMES = 1 << 48  # libsndfile returns 2^63 - 1 if a header leaves the length open
LOUDEST = 8.0  # largest plausible float sample; 1 is full scale
DENSE_KERNEL = 1 << 20  # weights; above it the kernel of an awkward pair of rates is kept phase by phase
PHASES_AT_ONCE = 1 << 14  # output samples computed at a time in that case
WEIGHTS_AT_ONCE = 1 << 20  # of that kernel, in float64 and several times over
BLOCKS_AT_ONCE = 1 << 13  # rows of input copied at a time otherwise, about 30 MB
WRITTEN_AT_ONCE = 1 << 16  # samples: libsndfile's Vorbis encoder overflows its stack on 90 s in one call


# ---- reading -------------------------------------------------------------------------------------


def read(audio: Any, sample_rate: int | None = None, *, seconds: float | None = None) -> tuple[Tensor, int]:
    """A path, an open binary file, or samples with their rate -> mono float32 (N,) on the CPU, and its rate in Hz.

    `seconds` bounds how much is decoded. Samples are (N,), (channels, N) or (N, channels); integers are scaled to 1.
    """
    if isinstance(audio, (str, os.PathLike)) or hasattr(audio, "read"):
        _no_rate(sample_rate)
        samples, rate = _decode(audio, seconds)
    else:
        samples, rate = _samples(audio, sample_rate, seconds)
    name = label(audio)
    if not len(samples):
        raise ValueError(f"{name}: it holds no samples; give a recording of speech")
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    if not np.isfinite(samples).all():
        raise ValueError(f"{name}: some samples are NaN or infinite; they must be numbers, as a rule within -1 to 1")
    return torch.from_numpy(samples), rate


def describe(file: BinaryIO) -> tuple[float, int, int]:
    """Returns seconds, rate and channels from an open recording's header; nothing is decoded."""
    import soundfile

    start = file.tell()
    try:
        with soundfile.SoundFile(file) as sound:
            if sound.frames > MOST_FRAMES:
                raise ValueError(NO_LENGTH.format(label(file)))
            return sound.frames / sound.samplerate, sound.samplerate, sound.channels
    except (soundfile.SoundFileError, TypeError) as error:
        raise ValueError(f"{label(file)}: not a recording, or damaged ({_why(error)}); {READABLE}") from error
    finally:
        file.seek(start)


def _no_rate(sample_rate: int | None) -> None:
    if sample_rate is not None:
        raise ValueError(f"sample_rate={sample_rate}: a file states its own rate; give a rate with samples only")


def label(audio: Any) -> str:
    """Returns the name of a recording for messages."""
    if isinstance(audio, (str, os.PathLike)):
        return os.fspath(audio)
    return "the open file" if hasattr(audio, "read") else "the samples"


def _decode(file: Any, seconds: float | None) -> tuple[np.ndarray, int]:
    import soundfile

    name, opened = label(file), hasattr(file, "read")
    start = file.tell() if opened else 0
    if not opened:
        must_be_file(Path(file))
        file = os.fspath(file)
    try:
        with soundfile.SoundFile(file) as sound:
            rate, claimed = sound.samplerate, sound.frames
            if not RATES[0] <= rate <= RATES[1]:
                raise ValueError(f"{name}: its rate is {rate} Hz; {RATES[0]} to {RATES[1]} can be read")
            wanted = -1 if seconds is None else math.ceil(seconds * rate)
            if wanted < 0 and claimed > MOST_FRAMES:
                raise ValueError(NO_LENGTH.format(name))
            data = sound.read(wanted, dtype="float32", always_2d=True)
            _warn_if_cut(name, len(data), claimed if wanted < 0 else min(claimed, wanted), rate, sound.extra_info)
    except (soundfile.SoundFileError, TypeError) as error:
        raise ValueError(f"{name}: not a recording, or damaged or cut short ({_why(error)}); {READABLE}") from error
    finally:
        if opened:
            file.seek(start)  # so that it can be read again
    _check_loudest(data, f"{name}: its samples")
    return data.mean(1), rate


def _why(error: Exception) -> str:
    """Returns libsndfile's reason, without the object that it was given as a file."""
    if isinstance(error, TypeError):  # it goes by the name alone and asks for rate and channels
        return "a name in .raw says that it has no header"
    return str(getattr(error, "error_string", error)).rstrip(".")


def _check_loudest(samples: np.ndarray, what: str) -> None:
    most = max(samples.max(), -samples.min()) if samples.size else 0.0
    if LOUDEST < most < np.inf:
        raise ValueError(f"{what} reach {most:g}; floats lie within -1 to 1: divide int16's by 32768")


def must_be_file(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"{path}: this is a folder; give the recording itself")
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file (looked for from {Path.cwd()})")
    if not path.is_file():
        raise ValueError(f"{path}: this is a pipe or a device, which can be read once; write it to a file first")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty; record or copy it again")


def _warn_if_cut(name: str, got: int, expected: int, rate: int, notes: str) -> None:
    """Warns if a header promises more than there is, unless it says "until the end" (2^32 - 1)."""
    promise = re.search(r"data : (\d+) \(should be (\d+)\)", notes)
    short = got < 0.9 * expected or (promise and int(promise[2]) < int(promise[1]) < 2**32 - 512)
    if short:
        logger.warning("%s: the file is cut short; using the %.1f s that are there", name, got / rate)


def _samples(audio: Any, rate: int | None, seconds: float | None) -> tuple[np.ndarray, int]:
    if isinstance(audio, Tensor):
        audio = (audio.float() if audio.is_floating_point() else audio).detach().cpu().numpy()
    if isinstance(audio, tuple):  # (samples, rate), as torchaudio.load returns it
        raise ValueError("audio is tuple: give the samples alone, and their rate as sample_rate=")
    array = np.asarray(audio)
    if array.dtype.kind not in "fiu" or array.ndim not in (1, 2):
        raise ValueError(
            f"audio is {type(audio).__name__} of shape {array.shape} and type {array.dtype}; "
            "give a path, or samples of shape (N,), (channels, N) or (N, channels)"
        )
    if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)) or not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"sample_rate={rate!r}: samples need their rate in Hz, a whole number such as 24000")
    if not array.size:  # of which no axis is sure to be the channels
        return np.zeros(0, np.float32), int(rate)
    if array.ndim == 2:
        channels = int(np.argmin(array.shape))
        if array.shape[channels] > MAX_CHANNELS:
            raise ValueError(f"audio has shape {array.shape}; one side must be channels, at most {MAX_CHANNELS}")
        array = np.moveaxis(array, channels, 0)
    if seconds is not None:
        array = array[..., : math.ceil(seconds * rate)]
    if array.dtype.kind in "iu":
        if array.dtype.itemsize > 4:  # no recording has samples of 64 bits: these are smaller ones
            raise ValueError(f"samples are {array.dtype}, as no recording has them: give int16, int32 or floats")
        middle = 2.0 ** (8 * array.dtype.itemsize - 1)
        array = (array - (middle if array.dtype.kind == "u" else 0.0)) / middle
    else:
        _check_loudest(array, "samples")
    array = array.astype(np.float32, copy=False)
    return (array.mean(0) if array.ndim == 2 else array), int(rate)


def fingerprint(audio: Any, sample_rate: int | None = None) -> str:
    """Returns a hash of the content. Of a file the bytes are hashed, which is faster than decoding it."""
    digest = hashlib.blake2b(digest_size=20)
    if isinstance(audio, (str, os.PathLike)):
        _no_rate(sample_rate)
        must_be_file(Path(audio))
        with open(audio, "rb") as file:
            _digest_file(file, digest)
    elif hasattr(audio, "read"):
        _no_rate(sample_rate)
        start = audio.tell()
        _digest_file(audio, digest)
        audio.seek(start)
    else:
        wav, rate = read(audio, sample_rate)
        digest.update(f"{rate} ".encode())
        digest.update(wav.numpy().data)
    return digest.hexdigest()


def _digest_file(file: Any, digest: Any) -> None:
    while block := file.read(1 << 20):
        digest.update(block)


# ---- resampling ----------------------------------------------------------------------------------


class Filter(NamedTuple):
    """A windowed-sinc filter, in samples of the lower of two rates."""

    cutoff: float  # as a fraction of the Nyquist rate
    reach: float  # half the window's width
    beta: float | None  # of a Kaiser window; None = Hann


# torchaudio's defaults: 6 zero crossings. Upstream resamples S3Gen's prompt so, and the x-vector was trained on that.
QUICK = Filter(0.99, 6 / 0.99, None)
# soxr's HQ filter, to 1e-4 of the signal: flat to 0.914 of the Nyquist rate, 120 dB down above it. Fitted.
SHARP = Filter(0.95687, 98.334, 13.4513)


def resample(wav: Tensor, orig: int, new: int, exact: bool = False, sharp: bool = False) -> Tensor:
    """(..., N) at `orig` Hz -> (..., ceil(N * new / orig)) at `new` Hz, on the same device.

    The plain call is torchaudio's; `sharp` comes close to soxr's HQ, as librosa resamples; `exact` is soxr, on the CPU.
    """
    if orig == new:
        return wav
    if exact:
        return _soxr(wav, orig, new)
    kind = SHARP if sharp else QUICK
    common = math.gcd(orig, new)
    orig, new = orig // common, new // common
    flat = wav.reshape(-1, wav.shape[-1])
    length = -(-flat.shape[1] * new // orig)
    width = _width(orig, new, kind)
    dense = new * (2 * width + orig) <= DENSE_KERNEL
    out = (_by_block if dense else _by_phase)(flat, orig, new, width, length, kind)
    return out.reshape(*wav.shape[:-1], length)


def _width(orig: int, new: int, kind: Filter) -> int:
    """Returns the input samples that the window reaches on either side of an output sample."""
    return math.ceil(kind.reach * orig / min(orig, new))


def _sinc(time: np.ndarray, orig: int, new: int, kind: Filter) -> np.ndarray:
    """Returns the filter's weights at `time`, in periods after which samples of both rates coincide."""
    time = (time * min(orig, new)).clip(-kind.reach, kind.reach)
    at = time / kind.reach
    if kind.beta is None:
        window = np.cos(at * np.pi / 2) ** 2
    else:
        window = np.i0(kind.beta * np.sqrt(1 - at**2)) / np.i0(kind.beta) * (np.abs(at) < 1)
    return np.sinc(time * kind.cutoff) * window * (kind.cutoff * min(orig, new) / orig)


@functools.lru_cache(maxsize=32)
def _kernel(orig: int, new: int, kind: Filter, device: torch.device) -> Tensor:
    """Returns (taps, new): the weights of `orig` input samples and their neighbours in each of `new` output samples.
    In float64 on CUDA, where a user may have allowed TF32 for products, which would leave 10 bits of the sound."""
    width = _width(orig, new, kind)
    taps = np.arange(-width, width + orig) / orig
    weights = _sinc(taps[:, None] - np.arange(new) / new, orig, new, kind)
    with torch.inference_mode(False):
        return torch.from_numpy(weights).to(device, torch.float64 if device.type == "cuda" else torch.float32)


def _by_block(flat: Tensor, orig: int, new: int, width: int, length: int, kind: Filter) -> Tensor:
    """Resamples by a matrix product whose rows are overlapping windows of input, of several periods if these are short.
    """
    periods = max(1, 2 * width // orig)
    orig, new = orig * periods, new * periods
    kernel = _kernel(orig, new, kind, flat.device)
    count = -(-length // new)
    padded = F.pad(flat, (width, width + count * orig - flat.shape[1]))
    rows = padded.unfold(1, len(kernel), orig)  # (B, count, taps), a view
    out = torch.cat([(part.to(kernel.dtype) @ kernel).to(flat.dtype) for part in rows.split(BLOCKS_AT_ONCE, 1)], 1)
    return out.flatten(1)[:, :length]


@functools.lru_cache(maxsize=2)  # of up to 600 MB each
def _phases(orig: int, new: int, kind: Filter, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the first input sample of each phase, (new,), and its taps, (new, 2 * width + 2)."""
    width = _width(orig, new, kind)
    first = np.arange(new) * orig // new - width
    weights = np.empty((new, 2 * width + 2), np.float32)
    step = max(1, WEIGHTS_AT_ONCE // weights.shape[1])
    for start in range(0, new, step):
        part = slice(start, start + step)
        taps = first[part, None] + np.arange(weights.shape[1])
        weights[part] = _sinc(taps / orig - np.arange(new)[part, None] / new, orig, new, kind)
    with torch.inference_mode(False):
        return torch.from_numpy(first).to(device), torch.from_numpy(weights).to(device)


def _by_phase(flat: Tensor, orig: int, new: int, width: int, length: int, kind: Filter) -> Tensor:
    first, weights = _phases(orig, new, kind, flat.device)
    weights = weights.to(flat.dtype)
    taps = torch.arange(weights.shape[1], device=flat.device)
    padded = F.pad(flat, (width, 2 * width + 2))
    parts = []
    for start in range(0, length, PHASES_AT_ONCE):
        n = torch.arange(start, min(start + PHASES_AT_ONCE, length), device=flat.device)
        at = (n // new * orig + first[n % new] + width)[:, None] + taps
        parts.append((padded[:, at] * weights[n % new]).sum(-1))
    return torch.cat(parts, 1)


def _soxr(wav: Tensor, orig: int, new: int) -> Tensor:
    import soxr

    rows = wav.reshape(-1, wav.shape[-1]).cpu().numpy()
    length = math.ceil(rows.shape[1] * (float(new) / orig))  # in floating point, as librosa does
    out = np.zeros((len(rows), length), dtype=rows.dtype)
    for row, samples in zip(out, rows):
        made = soxr.resample(samples, orig, new, quality="soxr_hq")[:length]
        row[: len(made)] = made
    return torch.from_numpy(out).to(wav.device).reshape(*wav.shape[:-1], length)


# ---- writing -------------------------------------------------------------------------------------


def writable_kinds() -> Collection[str]:
    """Returns the file endings, in capitals, that this build of libsndfile can write."""
    import soundfile

    return [kind for kind in soundfile.available_formats() if soundfile.default_subtype(kind)]


def pcm16(wav: Tensor) -> bytes:
    """(1, N) in [-1, 1] -> little-endian 16-bit samples, by NumPy: a server's threads get no OpenMP workers."""
    return (wav[0].numpy().clip(-1, 1) * 32767).round().astype("<i2").tobytes()


def write_wav(path: str | os.PathLike, wav: Tensor | np.ndarray, rate: int) -> None:
    """Writes (N,) or (channels, N) to a 16-bit file, whose format follows from the name's ending; wav without one."""
    data = np.asarray(wav.detach().float().cpu() if isinstance(wav, Tensor) else wav, dtype=np.float32)
    data = data.T if data.ndim == 2 else data
    with SoundWriter(path, rate, data.shape[1] if data.ndim == 2 else 1) as file:
        file.add(data)


class SoundWriter:
    """Writes a 16-bit file piece by piece. The format follows from the name's ending; wav without one."""

    def __init__(self, path: str | os.PathLike, rate: int, channels: int = 1) -> None:
        import soundfile

        self.path, self._errors = path, (soundfile.SoundFileError, TypeError)
        with self._telling():
            kind = None if Path(path).suffix else "WAV"
            self._file = soundfile.SoundFile(os.fspath(path), "w", rate, channels, format=kind)

    def add(self, data: np.ndarray) -> None:
        """Appends (n,) or (n, channels) samples: int16, or floats in [-1, 1]."""
        with self._telling():
            for start in range(0, len(data), WRITTEN_AT_ONCE):
                part = data[start : start + WRITTEN_AT_ONCE]
                self._file.write(part if part.dtype == np.int16 else part.clip(-1.0, 1.0))

    def __enter__(self) -> SoundWriter:
        return self

    def __exit__(self, *_: Any) -> None:
        with self._telling():
            self._file.close()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise ValueError(
                f"{self.path}: cannot be written ({error}); a name in an existing folder, ending in .wav, is needed"
            ) from error


def blocks(path: str | os.PathLike) -> Iterator[np.ndarray]:
    """Yields (n,) int16 samples of a mono file, some seconds at a time. Raises ValueError for a damaged one."""
    import soundfile

    try:
        with soundfile.SoundFile(os.fspath(path)) as sound:
            yield from sound.blocks(WRITTEN_AT_ONCE, dtype="int16")
    except soundfile.SoundFileError as error:
        raise ValueError(f"{path}: not a recording, or damaged ({_why(error)})") from error
