"""Pieces of sound put together so that no seam is heard."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..config import S3GEN_RATE

PAUSE = 0.15  # s of silence between the pieces of a long text
FADE = 0.01  # s, equal-power, on both sides of each pause
CONTEXT = S3GEN_RATE  # samples, 1 s, that a chunk is marked together with
OVERLAP = S3GEN_RATE // 50  # samples, 20 ms, in which one chunk's watermark passes into the next one's


def join(parts: Sequence[Tensor], before: Sequence[float | None] | None = None, after: float = 0.0) -> Tensor:
    """Pieces of one text, faded at the seams, with a short pause between them, or as many seconds of silence as
    `before` has for each; `after` is behind the last."""
    if not parts:
        return torch.zeros(0)
    found = places([len(part) for part in parts], before)
    out = parts[0].new_zeros(found[-1][1] + samples(after))
    for i, (part, (first, end)) in enumerate(zip(parts, found)):
        follows = i < len(parts) - 1 or samples(after) > 0
        out[first:end] = faded(part, start=first > 0, end=follows)
    return out


def places(lengths: Sequence[int], before: Sequence[float | None] | None = None) -> list[tuple[int, int]]:
    """(first sample, behind the last) of pieces that join() puts together."""
    found: list[tuple[int, int]] = []
    for i, length in enumerate(lengths):
        end = found[-1][1] if found else 0
        first = end + room(before[i] if before else None, follows=i > 0)
        found.append((first, first + length))
    return found


def room(seconds: float | None, follows: bool) -> int:
    """Samples of silence ahead of a piece, which `follows` another one or does not."""
    return samples((PAUSE if follows else 0.0) if seconds is None else seconds)


def samples(seconds: float) -> int:
    return round(seconds * S3GEN_RATE)


def faded(wave: Tensor, start: bool = False, end: bool = False) -> Tensor:
    n = min(int(FADE * S3GEN_RATE), len(wave) // 2)
    if not n or not (start or end):
        return wave
    ramp = torch.sin(torch.linspace(0, torch.pi / 2, n, device=wave.device, dtype=wave.dtype))
    wave = wave.clone()
    if start:
        wave[:n] *= ramp
    if end:
        wave[-n:] *= ramp.flip(0)
    return wave


class ChunkJoiner:
    """Chunks of a text's pieces, in their order -> sound as join() would put it together, watermarked."""

    def __init__(
        self, pieces: int, mark: Callable[[Sequence[Tensor]], list[Tensor]] | None = None,
        before: Sequence[float | None] | None = None, after: float = 0.0,
    ) -> None:
        self.marker = ChunkMarker(mark)
        self.before, self.after = before or [None] * pieces, after
        self.left = pieces  # whose end was not heard yet
        self.sounding = False
        self.places: list[tuple[int, int]] = []  # (first sample, behind the last) of the pieces that have ended
        self._begun = False  # the piece that is being heard
        self._first = self._length = 0  # samples: where that began; all so far

    def add(self, wave: Tensor, last: bool = False) -> Tensor:
        """(N,) samples of a piece, `last` where none of it follow -> (M,) that continue what was returned before."""
        piece = len(self.before) - self.left
        self.left -= last
        if len(wave):
            silence = 0 if self._begun else room(self.before[piece], self.sounding)
            self._first = self._first if self._begun else self._length + silence
            follows = self.left or samples(self.after) > 0
            wave = faded(wave, start=not self._begun and self._first > 0, end=bool(last and follows))
            wave = torch.cat([wave.new_zeros(silence), wave]) if silence else wave
            self.sounding = self._begun = True
            self._length += len(wave)
            wave = self.marker.add(wave)
        if last:
            self.places.append((self._first if self._begun else self._length, self._length))
        self._begun = self._begun and not last
        return wave if self.left else self._ended(wave)

    def _ended(self, wave: Tensor) -> Tensor:
        silence = samples(self.after) if self.sounding else 0
        if silence:
            wave = torch.cat([wave, self.marker.add(wave.new_zeros(silence))])
        return torch.cat([wave, self.marker.rest(wave)])


class ChunkMarker:
    """Watermarks sound that comes in chunks. A mark made of a chunk alone would begin anew with it; so each is marked
    together with the second before it, and faded from one marking into the next."""

    def __init__(self, mark: Callable[[Sequence[Tensor]], list[Tensor]] | None) -> None:
        self.mark = mark
        self._before: Tensor | None = None  # what came last, without a mark
        self._tail: Tensor | None = None  # its end, marked, which is still to be given out

    def add(self, wave: Tensor) -> Tensor:
        """(N,) samples -> (M,) marked ones, which continue what was given out before."""
        if self.mark is None:
            return wave
        heard = wave if self._before is None else torch.cat([self._before, wave])
        held = 0 if self._tail is None else len(self._tail)
        (marked,) = self.mark([heard])
        fresh = marked[len(heard) - len(wave) - held :].clone()
        if held:
            fresh[:held] = torch.lerp(self._tail, fresh[:held], torch.linspace(0, 1, held, device=fresh.device))
        self._before, self._tail = heard[-CONTEXT:], fresh[-OVERLAP:]
        return fresh[: len(fresh) - len(self._tail)]

    def rest(self, like: Tensor) -> Tensor:
        """What was held back for a chunk that does not come; of `like`'s device where that is nothing."""
        return like[:0] if self._tail is None else self._tail
