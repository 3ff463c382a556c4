"""Changes the speed of sound, chunk by chunk, at the same pitch: waveform-similarity overlap-add (WSOLA)."""

from __future__ import annotations

import numpy as np

WINDOW = 0.030  # s; at least two periods of the lowest voices
SEARCH = 0.010  # s on either side of a window's nominal start; together a period of 50 Hz


class Stretch:
    """`speed` above 1 makes the sound shorter. The results of add(), and of rest() at the end, joined, are the whole
    sound, and do not depend on how it was cut into chunks."""

    def __init__(self, speed: float, rate: int) -> None:
        if not 0.25 <= speed <= 4.0:
            raise ValueError(f"speed={speed!r}: a number from 0.25 to 4 is needed")
        self.speed = speed
        self.hop = round(WINDOW * rate / 2)  # output samples per window; windows overlap by half
        self.reach = round(SEARCH * rate)
        self.window = np.hanning(2 * self.hop + 1)[:-1].astype(np.float32)
        self._sound = np.zeros(0, np.float32)  # of the input, from sample `_start` on
        self._start = self._read = self._told = 0  # samples dropped, received, returned
        self._count = 0  # windows placed
        self._follows = 0  # input sample that continues the last window
        self._tail = np.zeros(self.hop, np.float32)  # second half of the last window

    def add(self, chunk: np.ndarray) -> np.ndarray:
        """Takes (n,) float32; returns (m,) float32 that continue what was returned before."""
        self._sound = np.concatenate([self._sound, chunk.astype(np.float32, copy=False)])
        self._read += len(chunk)
        made: list[np.ndarray] = []
        while self._needs() <= self._read:
            made.append(self._lay())
        return self._tell(made)

    def rest(self) -> np.ndarray:
        """Returns the remaining samples; the whole then has the sound's length divided by `speed`."""
        target = round(self._read / self.speed)
        made: list[np.ndarray] = []
        while self._told + sum(map(len, made)) < target:
            missing = max(0, self._needs() - self._start - len(self._sound))
            self._sound = np.concatenate([self._sound, np.zeros(missing, np.float32)])
            made.append(self._lay())
        out = self._tell(made)
        return out[: len(out) - (self._told - target)]

    def _due(self) -> int:
        """Returns the nominal start of the next window, at which its middle corresponds to the middle of its output."""
        return round((self._count + 1) * self.hop * self.speed) - self.hop

    def _needs(self) -> int:
        """Returns the number of input samples that the next window may need."""
        return max(self._due() + self.reach, self._follows) + 2 * self.hop

    def _at(self, start: int, length: int) -> np.ndarray:
        """Returns `length` input samples from `start` on; silence before the beginning."""
        before = max(0, -start)
        begin = start + before - self._start
        return np.concatenate([np.zeros(before, np.float32), self._sound[begin : begin + length - before]])

    def _lay(self) -> np.ndarray:
        """Adds a window where it best continues the previous ones; returns the finished samples."""
        at = self._best() if self._count else self._due()
        piece = self._at(at, 2 * self.hop)
        # The first half-window has no predecessor and keeps its full amplitude.
        rising = piece[: self.hop] * (self.window[: self.hop] if self._count else 1.0)
        out = self._tail + rising
        self._tail = piece[self.hop :] * self.window[self.hop :]
        self._follows = at + self.hop
        self._count += 1
        keep = max(self._start, min(self._due() - self.reach, self._follows))
        self._sound, self._start = self._sound[keep - self._start :], keep
        return out.astype(np.float32)

    def _best(self) -> int:
        """Returns the start within SEARCH of the nominal one that is most similar to the natural continuation."""
        due = self._due()
        wanted = self._at(self._follows, 2 * self.hop)
        around = self._at(due - self.reach, 2 * (self.hop + self.reach))
        likeness = np.correlate(around, wanted, "valid")
        energy = np.concatenate([[0.0], np.cumsum(around.astype(np.float64) ** 2)])
        power = energy[2 * self.hop :] - energy[: -2 * self.hop]
        return due - self.reach + int(np.argmax(likeness / np.sqrt(power + 1e-6)))

    def _tell(self, made: list[np.ndarray]) -> np.ndarray:
        out = np.concatenate(made) if made else np.zeros(0, np.float32)
        self._told += len(out)
        return out
