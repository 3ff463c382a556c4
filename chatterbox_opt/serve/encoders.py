"""Samples in, bytes of a file out, as they come: pcm, wav, mp3, flac; opus and aac where PyAV is installed."""

from __future__ import annotations

import importlib.util
import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..audio.io import pcm16

MEDIA = {
    "mp3": "audio/mpeg", "opus": "audio/ogg", "aac": "audio/aac", "flac": "audio/flac", "wav": "audio/wav",
    "pcm": "audio/pcm",
}
UNKNOWN = 0xFFFFFFFF  # bytes of a wav whose length is not known yet: players read to the end
MP3_KBPS, OPUS_KBPS, AAC_KBPS = 96, 48, 64
PAGE_MICROSECONDS = 20_000  # of an Ogg page: libavformat would hold back a second


class Pcm:
    """16-bit little-endian samples and nothing else."""

    def __init__(self, rate: int, whole: bool = False) -> None:
        """`whole`: all of it is collected before any is sent, so the file can begin with its length."""

    def add(self, wave: np.ndarray) -> bytes:
        return pcm16(torch.from_numpy(wave)[None])

    def end(self) -> bytes:
        return b""


class Wav(Pcm):
    def __init__(self, rate: int, whole: bool = False) -> None:
        self._rate = rate
        self._held: list[bytes] | None = [] if whole else None  # until the length is known
        self._header = b"" if whole else self._headed(UNKNOWN)

    def _headed(self, size: int) -> bytes:
        file = UNKNOWN if size == UNKNOWN else 36 + size
        form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, self._rate, 2 * self._rate, 2, 16)
        return struct.pack("<4sI4s", b"RIFF", file, b"WAVE") + form + struct.pack("<4sI", b"data", size)

    def add(self, wave: np.ndarray) -> bytes:
        header, self._header = self._header, b""
        data = header + super().add(wave)
        if self._held is None:
            return data
        self._held.append(data)
        return b""

    def end(self) -> bytes:
        if self._held is None:
            return b""
        return b"".join([self._headed(sum(map(len, self._held))), *self._held])


class Mp3(Pcm):
    """Frames of one bit rate and no Xing frame: what is joined from two streams is a stream."""

    def __init__(self, rate: int, whole: bool = False) -> None:
        import lameenc

        self._encoder = lameenc.Encoder()
        self._encoder.silence()
        self._encoder.set_in_sample_rate(rate)
        self._encoder.set_channels(1)
        self._encoder.set_bit_rate(MP3_KBPS)
        self._encoder.set_quality(5)  # 2 = finest, 7 = quickest

    def add(self, wave: np.ndarray) -> bytes:
        return bytes(self._encoder.encode(super().add(wave)))

    def end(self) -> bytes:
        return bytes(self._encoder.flush())


class Pipe(io.RawIOBase):
    """A file for a writer that goes back to its header in the end: what was read from it stays as it was."""

    def __init__(self) -> None:
        self._at = self._end = 0
        self._fresh = bytearray()

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._end}[whence]
        return self._at

    def write(self, data: Any) -> int:
        data = bytes(data)
        if self._at == self._end:
            self._fresh += data
        self._at += len(data)
        self._end = max(self._end, self._at)
        return len(data)

    def taken(self) -> bytes:
        fresh, self._fresh = bytes(self._fresh), bytearray()
        return fresh


class Flac(Pcm):
    """Where the length is not known ahead, the header leaves it open, as the format allows."""

    def __init__(self, rate: int, whole: bool = False) -> None:
        import soundfile

        self._file: Any = io.BytesIO() if whole else Pipe()
        self._writer = soundfile.SoundFile(self._file, "w", rate, 1, format="FLAC", subtype="PCM_16")

    def add(self, wave: np.ndarray) -> bytes:
        self._writer.write(np.frombuffer(super().add(wave), "<i2"))
        return self._file.taken() if isinstance(self._file, Pipe) else b""

    def end(self) -> bytes:
        self._writer.close()
        return self._file.taken() if isinstance(self._file, Pipe) else self._file.getvalue()


class Av(Pcm):
    """Opus in Ogg, or AAC in ADTS frames, by PyAV."""

    def __init__(self, kind: str, rate: int) -> None:
        import av

        self._av = av
        self._file = Pipe()
        options = {"page_duration": str(PAGE_MICROSECONDS)} if kind == "opus" else {}
        self._container = av.open(self._file, "w", format="ogg" if kind == "opus" else "adts", options=options)
        self._stream = self._container.add_stream("libopus" if kind == "opus" else "aac", rate=rate, layout="mono")
        self._stream.bit_rate = 1000 * (OPUS_KBPS if kind == "opus" else AAC_KBPS)
        self._rate, self._count = rate, 0

    def add(self, wave: np.ndarray) -> bytes:
        if len(wave):
            samples = np.frombuffer(super().add(wave), "<i2")
            frame = self._av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = self._rate, self._count
            self._count += len(samples)
            self._container.mux(self._stream.encode(frame))
        return self._file.taken()

    def end(self) -> bytes:
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._file.taken()


class Opus(Av):
    def __init__(self, rate: int, whole: bool = False) -> None:
        super().__init__("opus", rate)


class Aac(Av):
    def __init__(self, rate: int, whole: bool = False) -> None:
        super().__init__("aac", rate)


ENCODERS: dict[str, Callable[..., Pcm]] = {
    "mp3": Mp3, "opus": Opus, "aac": Aac, "flac": Flac, "wav": Wav, "pcm": Pcm,
}
NEEDS = {"mp3": ("lameenc", "serve"), "opus": ("av", "serve-opus"), "aac": ("av", "serve-opus")}  # module, extra


def missing(kind: str) -> str | None:
    """What to install, where this format cannot be made here."""
    module, extra = NEEDS.get(kind, (None, None))
    if module is None or importlib.util.find_spec(module) is not None:
        return None
    return f"response_format={kind!r} needs the package {module}: pip install 'chatterbox-opt[{extra}]'"


def available() -> list[str]:
    return [kind for kind in ENCODERS if not missing(kind)]


def encode(kind: str, wave: np.ndarray, rate: int) -> bytes:
    """A whole file, its length in its header."""
    encoder = ENCODERS[kind](rate, whole=True)
    return encoder.add(wave) + encoder.end()
