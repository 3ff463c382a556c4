"""WavRunner: mels of any lengths -> waves, computed in windows of few sizes, with the result of one pass over each mel.

A sample depends on `reach` mel frames on either side, and on the source signal there. So the source is computed for the
whole utterance, and the network after it may run on windows that overlap by twice the reach: memory is bounded,
utterances of different length share a batch without padding, and there are few shapes to capture.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import FRAMES_PER_TOKEN, MEL_BINS, S3GEN_RATE, SAMPLES_PER_FRAME
from ..models.hift import FLOAT32, Hift, reach
from ..options import EngineOptions
from .agreement import ripples
from .graphs import Captured, bucket, on_trial
from .held import held
from .noise import RequestNoise
from .operations import vocoder_operations

SIZES = (512, 256, 128, 64)  # mel frames of a captured window
ROWS = (1, 2, 4, 8)  # windows per captured batch
GRAIN = 32  # mel frames: on a CPU oneDNN prepares operations for each length anew, with a small vocoder for as long as
# they take; float32 sounds then differ in their last bits, as a convolution of another length sums in another order
F0_REACH = 5  # mel frames on either side that a frame's fundamental frequency depends on
FADE = S3GEN_RATE // 50  # samples: 20 ms of silence, then 20 ms of fade, as the voice prompt leaks into the start


_tf32_lock = threading.RLock()  # the switches belong to the process: no thread may reset them while another computes


class Window(NamedTuple):
    """A stretch of an utterance's mel. All but `row` are frames of the utterance."""

    row: int  # of the batch
    start: int
    size: int
    first: int  # its sound is used from here
    last: int  # to here


class WavRunner:
    def __init__(self, hift: Hift, options: EngineOptions) -> None:
        self.hift, self.options = hift, options
        self.device = hift.conv_pre.weight.device
        self.reach = reach(hift.cfg)
        self.hold = self.reach + F0_REACH  # frames at the end of a mel whose samples depend on later frames
        # captured uncompiled in every mode: torch.compile would compute its tables on the host, during the capture
        recorded = options.compile and options.records("vocoder") and self.device.type == "cuda"
        trial = on_trial("vocoder", options, options.s3gen_dtype)
        self.captured = Captured("cudagraph" if recorded else None, self.device, trial=trial)
        self._inputs: dict[tuple[int, int], tuple[Tensor, Tensor] | None] = {}  # None: it could not be captured
        dtype = getattr(torch, "float32" if options.s3gen_dtype == "auto" else options.s3gen_dtype)
        self.grain = GRAIN if self.device.type == "cpu" else 1
        for name, part in hift.named_children():
            part.to(torch.float32 if name in FLOAT32 else dtype)
        self.operations = vocoder_operations(hift, options)

    @property
    def hold_tokens(self) -> int:
        """`hold` in tokens, rounded up."""
        return -(-self.hold // FRAMES_PER_TOKEN)

    @torch.inference_mode()
    def render(self, mels: Sequence[Tensor], noises: Sequence[RequestNoise]) -> list[Tensor]:
        """Mels (80, T) -> waves (480 T,) in float32 on the model's device, with silenced and faded starts."""
        for i, mel in enumerate(mels):
            if mel.dim() != 2 or mel.shape[0] != MEL_BINS or not mel.shape[1]:
                raise ValueError(
                    f"mel {i} has shape {tuple(mel.shape)}: ({MEL_BINS}, frames) with at least one frame is needed; "
                    "no frames means that no speech tokens came before"
                )
        spectra = [self.spectrum(mel, *self._source_noise(mel, noise)) for mel, noise in zip(mels, noises)]
        return [fade_in(wave) for wave in self.decode(mels, spectra)]

    @torch.inference_mode()
    def continued(self, mel: Tensor, noise: RequestNoise, source: Tensor) -> tuple[Tensor, Tensor]:
        """Mel (80, T) whose source begins with `source` (n,) -> its wave and its source, both (480 T,), no fade."""
        with full_float32(self.device):
            whole = self.hift.source(mel[None], *self._source_noise(mel, noise), self.operations)
            whole[0, : len(source)] = source
            return self._decode([mel], [self.hift.spectrum(whole)])[0], whole[0]

    def _source_noise(self, mel: Tensor, noise: RequestNoise) -> tuple[Tensor, Tensor]:
        harmonics, samples = self.hift.cfg.harmonics + 1, SAMPLES_PER_FRAME * mel.shape[1]
        drawn = noise.phases(harmonics), noise.normal((1, harmonics, samples))
        noise.normal((1, samples, 1))  # upstream draws this too, and does not use it
        return drawn

    def spectrum(self, mel: Tensor, phases: Tensor, normal: Tensor) -> Tensor:
        """Mel (80, T) and the noise of its source -> the source's spectrum (1, 120 T + 1, 18)."""
        with full_float32(self.device):
            return self.hift.spectrum(self.hift.source(mel[None], phases, normal, self.operations))

    def decode(self, mels: Sequence[Tensor], spectra: Sequence[Tensor]) -> list[Tensor]:
        """Mels (80, T) and the spectra of their sources (1, 120 T + 1, 18) -> waves (480 T,)."""
        with full_float32(self.device):
            return self._decode(mels, spectra)

    def _decode(self, mels: Sequence[Tensor], spectra: Sequence[Tensor]) -> list[Tensor]:
        out = [torch.empty(SAMPLES_PER_FRAME * m.shape[1], device=self.device, dtype=torch.float32) for m in mels]
        by_size: dict[int, list[Window]] = defaultdict(list)
        for row, mel in enumerate(mels):
            total = mel.shape[1]
            for window in windows(row, total, self._size(total), self.reach):
                by_size[window.size].append(window)
        for size, group in by_size.items():
            for batch in self._batches(size, group):
                waves = self._run(size, [_cut(w, mels[w.row], spectra[w.row]) for w in batch])
                for w, wave in zip(batch, waves):
                    a, b = w.first * SAMPLES_PER_FRAME, w.last * SAMPLES_PER_FRAME
                    offset = w.start * SAMPLES_PER_FRAME
                    out[w.row][a:b] = wave[a - offset : b - offset]
        return out

    def _size(self, total: int) -> int:
        """Returns the frames per window of an utterance of `total` frames."""
        if self.captured.on and total >= SIZES[-1]:
            return next(s for s in SIZES if s <= min(total, max(self.options.wav_chunk, SIZES[-1])))
        if total <= self.options.wav_chunk:
            return total
        fresh = self.options.wav_chunk - 2 * self.reach
        count = -(-(total - 2 * self.reach) // fresh)
        return -(-(total - 2 * self.reach) // count) + 2 * self.reach

    def _batches(self, size: int, group: list[Window]) -> Iterator[list[Window]]:
        """Yields the windows of `group`, of `size` frames each, as batches."""
        rows = max(r for r in ROWS if r == 1 or self._fits(r, size))
        for i in range(0, len(group), rows):
            yield group[i : i + rows]

    def _fits(self, rows: int, size: int) -> bool:
        """Whether a batch may have that many windows of `size` frames. On a CPU one, which keeps it busy."""
        return rows * size <= self.options.wav_chunk and (self.device.type != "cpu" or self.captured.on)

    def _run(self, size: int, parts: list[tuple[Tensor, Tensor]]) -> Tensor:
        key = (bucket(len(parts)), size)
        if not (self.captured.on and size in SIZES and self._capture(key)):
            return self._decode_padded(*(torch.stack(group) for group in zip(*parts)))
        mel, spectrum = self._inputs[key]
        for i, (m, s) in enumerate(parts):
            mel[i].copy_(m)
            spectrum[i].copy_(s)
        return self.captured.run(key, lambda: self.hift.decode(mel, spectrum, self.operations))

    def _decode_padded(self, mel: Tensor, spectrum: Tensor) -> Tensor:
        """Mel (B, 80, T) and spectrum (B, 120 T + 1, 18) -> wave (B, 480 T)."""
        frames, rate = mel.shape[-1], (spectrum.shape[1] - 1) // mel.shape[-1]
        more = -frames % self.grain
        mel, spectrum = F.pad(mel, (0, more)), F.pad(spectrum, (0, 0, 0, rate * more))
        return self.hift.decode(mel, spectrum, self.operations, frames)

    def _capture(self, key: tuple[int, int]) -> bool:
        """Captures (rows, frames) unless it is captured; returns whether it is."""
        return held(self._inputs, key, self.captured, partial(self._prepare, key)) is not None

    def _prepare(self, key: tuple[int, int]) -> tuple[Tensor, Tensor] | None:
        mel, spectrum = self._example(key)
        captured = self.captured.prepare(key, lambda: self.hift.decode(mel, spectrum, self.operations))
        return (mel, spectrum) if captured else None

    def _example(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        rows, size = key
        frames = size * SAMPLES_PER_FRAME // self.hift.cfg.hop + 1
        mel = 3 * ripples(rows, MEL_BINS, size, device=self.device) - 5  # about as loud as speech
        return mel, ripples(rows, frames, self.hift.cfg.n_fft + 2, device=self.device)

    @torch.inference_mode()
    def warmup(self, batch: int = 1) -> None:
        """Captures the windows of up to `batch` utterances before their first use, the largest first."""
        if not self.captured.on:
            return
        with full_float32(self.device):
            for key in self.planned(batch):
                self._capture(key)

    def planned(self, batch: int) -> list[tuple[int, int]]:
        """Returns the (windows, frames) that a warm-up captures: all that up to `batch` utterances can lead to."""
        keys, larger = [], None
        for size in (s for s in SIZES if s <= max(self.options.wav_chunk, SIZES[-1])):
            most = ROWS[-1] if larger is None else batch * len(windows(0, larger - 1, size, self.reach))
            keys += [(r, size) for r in reversed(ROWS) if r == 1 or (r <= bucket(most) and self._fits(r, size))]
            larger = size
        return keys


def windows(row: int, total: int, size: int, reach: int) -> list[Window]:
    """Returns evenly spaced windows over `total` frames. Where two meet is at least `reach` frames inside both."""
    if total <= size:
        return [Window(row, 0, total, 0, total)]
    count = -(-(total - size) // (size - 2 * reach)) + 1
    starts = [i * (total - size) // (count - 1) for i in range(count)]
    borders = [0, *[(a + size + b) // 2 for a, b in pairwise(starts)], total]
    return [Window(row, s, size, *borders[i : i + 2]) for i, s in enumerate(starts)]


def _cut(window: Window, mel: Tensor, spectrum: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the window's part of the mel, (80, size), and of the spectrum, (120 size + 1, 18), both ends included."""
    rate = (spectrum.shape[1] - 1) // mel.shape[1]
    end = window.start + window.size
    return mel[:, window.start : end].float(), spectrum[0, rate * window.start : rate * end + 1]


def fade_in(wave: Tensor) -> Tensor:
    """Silences the first 20 ms of a wave of any length and fades in the next 20 ms by a raised cosine, in place."""
    ramp = (torch.cos(torch.linspace(torch.pi, 0, FADE, device=wave.device, dtype=wave.dtype)) + 1) / 2
    wave[:FADE] = 0
    late = wave[FADE : 2 * FADE]
    late *= ramp[: len(late)]
    return wave


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Disables TF32 inside: the F0 network, the phases and the inverse transform need all 24 bits."""
    if device.type != "cuda":
        yield
        return
    with _tf32_lock:
        switches, name, off = _tf32_switches()
        before = [getattr(s, name) for s in switches]
        for switch in switches:
            setattr(switch, name, off)
        try:
            yield
        finally:
            for switch, value in zip(switches, before):
                setattr(switch, name, value)


def _tf32_switches() -> tuple[tuple, str, Any]:
    """Returns the switches, the name of their attribute and its value for off. Torch 2.9 added a second set, which
    the first writes too: only the second can be put back as the program left it."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(matmul, "fp32_precision"):
        return (matmul, cudnn.conv), "fp32_precision", "ieee"
    return (matmul, cudnn), "allow_tf32", False
