"""Joins the sound of a text's pieces and chunks without audible seams."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..config import S3GEN_RATE

PAUSE = 0.15  # s of silence between the pieces of a long text
FADE = 0.01  # s, equal-power, on both sides of each pause
CONTEXT = S3GEN_RATE  # samples, 1 s: context with which a chunk is watermarked
LONG_PAUSE = 2 * CONTEXT  # samples; of more only the first second is watermarked
OVERLAP = S3GEN_RATE // 50  # samples, 20 ms: cross-fade between the watermarks of two chunks


def join(parts: Sequence[Tensor], before: Sequence[float | None] | None = None, after: float = 0.0) -> Tensor:
    """Returns the pieces of one text as one wave, faded at the seams. `before` are the seconds of silence before each,
    None for the usual pause between pieces; `after` are those after the last."""
    if not parts:
        return torch.zeros(0, dtype=torch.float32)
    found = places([len(part) for part in parts], before)
    out = parts[0].new_zeros(found[-1][1] + samples(after))
    for i, (part, (first, end)) in enumerate(zip(parts, found)):
        follows = i < len(parts) - 1 or samples(after) > 0
        out[first:end] = faded(part, start=first > 0, end=follows)
    return out


def places(lengths: Sequence[int], before: Sequence[float | None] | None = None) -> list[tuple[int, int]]:
    """Returns (first sample, past the last) of each piece in the wave that join() returns."""
    found: list[tuple[int, int]] = []
    for i, length in enumerate(lengths):
        end = found[-1][1] if found else 0
        first = end + room(before[i] if before else None, follows=i > 0)
        found.append((first, first + length))
    return found


def room(seconds: float | None, follows: bool) -> int:
    """Returns the samples of silence before a piece; `follows`: whether another piece precedes it."""
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
    """Turns chunks of a text's pieces, in order, into the watermarked sound that join() would return as a whole."""

    def __init__(
        self, pieces: int, mark: Callable[[Sequence[Tensor]], list[Tensor]] | None = None,
        before: Sequence[float | None] | None = None, after: float = 0.0,
    ) -> None:
        self.marker = ChunkMarker(mark)
        self.before, self.after = before or [None] * pieces, after
        self.left = pieces  # pieces that have not ended
        self.sounding = False
        self.places: list[tuple[int, int]] = []  # (first sample, past the last) of the pieces that have ended
        self._begun = False  # whether a piece has begun and not ended
        self._first = self._length = 0  # samples: start of that piece; all so far

    def add(self, wave: Tensor, last: bool = False) -> Tensor:
        """Takes (N,) samples of a piece, `last` if they end it; returns (M,) that continue what was returned before."""
        piece = len(self.before) - self.left
        self.left -= last
        if len(wave):
            silence = 0 if self._begun else room(self.before[piece], self.sounding)
            self._first = self._first if self._begun else self._length + silence
            follows = self.left or samples(self.after) > 0
            wave = faded(wave, start=not self._begun and self._first > 0, end=bool(last and follows))
            self.sounding = self._begun = True
            self._length += silence + len(wave)
            wave = self._marked(wave, silence)
        if last:
            self.places.append((self._first if self._begun else self._length, self._length))
        self._begun = self._begun and not last
        return wave if self.left else self._ended(wave)

    def _marked(self, wave: Tensor, silence: int) -> Tensor:
        """Returns what comes with the wave and so many samples of silence before it."""
        if silence > LONG_PAUSE:
            return torch.cat([self.marker.pause(silence, wave), self.marker.add(wave)])
        return self.marker.add(torch.cat([wave.new_zeros(silence), wave]) if silence else wave)

    def _ended(self, wave: Tensor) -> Tensor:
        silence = samples(self.after) if self.sounding else 0
        if silence:
            wave = torch.cat([wave, self._marked(wave[:0], silence)])
        return torch.cat([wave, self.marker.rest(wave)])


class ChunkMarker:
    """Watermarks sound that comes in chunks. As the watermark of a chunk depends on its surroundings, each is marked
    together with the second before it, and one chunk's watermark is cross-faded into the next one's."""

    def __init__(self, mark: Callable[[Sequence[Tensor]], list[Tensor]] | None) -> None:
        self.mark = mark
        self._before: Tensor | None = None  # the latest samples, unmarked
        self._tail: Tensor | None = None  # their end, marked, not yet returned

    def add(self, wave: Tensor) -> Tensor:
        """Takes (N,) samples; returns (M,) marked ones that continue what was returned before."""
        if self.mark is None:
            return wave
        heard = wave if self._before is None else torch.cat([self._before, wave])
        tail = wave[:0] if self._tail is None else self._tail
        held = len(tail)
        (marked,) = self.mark([heard])
        fresh = marked[len(heard) - len(wave) - held :].clone()
        if held:
            rising = torch.linspace(0, 1, held, device=fresh.device, dtype=fresh.dtype)
            fresh[:held] = torch.lerp(tail, fresh[:held], rising)
        self._before, self._tail = heard[-CONTEXT:], fresh[-OVERLAP:]
        return fresh[: len(fresh) - len(self._tail)]

    def pause(self, silence: int, like: Tensor) -> Tensor:
        """As add(), of more than a second of silence on `like`'s device. A watermark reaches no further into it than a
        chunk's context, and marking all of it would take as long as marking speech."""
        if self.mark is None:
            return like.new_zeros(silence)
        near = self.add(like.new_zeros(CONTEXT))
        ending, self._tail = self.rest(like), like.new_zeros(OVERLAP)
        return torch.cat([near, ending, like.new_zeros(silence - CONTEXT - OVERLAP)])

    def rest(self, like: Tensor) -> Tensor:
        """Returns the samples held back for the next chunk; if there are none, an empty tensor on `like`'s device."""
        return like[:0] if self._tail is None else self._tail
