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


def join(parts: Sequence[Tensor]) -> Tensor:
    """Pieces of one text, faded at the seams, with a short pause between them."""
    if not parts:
        return torch.zeros(0)
    out: list[Tensor] = []
    for i, part in enumerate(parts):
        out += [pause(part)] if i else []
        out.append(faded(part, start=i > 0, end=i < len(parts) - 1))
    return torch.cat(out)


def pause(like: Tensor) -> Tensor:
    return like.new_zeros(int(PAUSE * S3GEN_RATE))


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

    def __init__(self, pieces: int, mark: Callable[[Sequence[Tensor]], list[Tensor]] | None = None) -> None:
        self.marker = ChunkMarker(mark)
        self.left = pieces  # whose end was not heard yet
        self.sounding = False
        self._begun = False  # the piece that is being heard

    def add(self, wave: Tensor, last: bool = False) -> Tensor:
        """(N,) samples of a piece, `last` where none of it follow -> (M,) that continue what was returned before."""
        self.left -= last
        if len(wave):
            if self.sounding and not self._begun:
                wave = torch.cat([pause(wave), faded(wave, start=True)])
            self.sounding = self._begun = True
            wave = self.marker.add(faded(wave, end=True) if last and self.left else wave)
        self._begun = self._begun and not last
        return wave if self.left else torch.cat([wave, self.marker.rest(wave)])


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
