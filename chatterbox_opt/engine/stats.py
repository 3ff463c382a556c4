"""Counters and histograms of the engine's work, cheap enough to be always on."""

from __future__ import annotations

import time
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

from ..config import S3GEN_RATE
from .request import Call, Cancelled

SECONDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
FACTORS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0, 16.0)


@dataclass
class Histogram:
    buckets: tuple[float, ...]  # upper bounds; `counts` has one more, for values above all
    counts: list[int] = field(default_factory=list)
    sum: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.counts = self.counts or [0] * (len(self.buckets) + 1)
        self.counts[bisect_left(self.buckets, value)] += 1
        self.sum, self.count = self.sum + value, self.count + 1

    def read(self) -> dict[str, Any]:
        counts = self.counts or [0] * (len(self.buckets) + 1)
        return dict(buckets=list(self.buckets), counts=list(counts), sum=self.sum, count=self.count)


@dataclass
class Stats:
    steps: int = 0  # in which there was something to do
    tokens: int = 0
    decoded_tokens: int = 0  # without each utterance's first one, which its prefill draws
    decode_seconds: float = 0.0
    samples: int = 0  # of sound delivered
    finished: int = 0  # without the calls in which takes are drawn and heard
    cancelled: int = 0
    failed: int = 0
    underruns: int = 0  # chunks delivered after their listener had taken all and run dry
    first_sound: Histogram = field(default_factory=lambda: Histogram(SECONDS))  # s from submission to the first sound
    real_time_factor: Histogram = field(default_factory=lambda: Histogram(FACTORS))  # s of waiting per s of sound

    def decoded(self, tokens: int, seconds: float) -> None:
        self.tokens += tokens
        self.decoded_tokens, self.decode_seconds = self.decoded_tokens + tokens, self.decode_seconds + seconds

    def sounded(self, call: Call, samples: int) -> None:
        """Counts delivered samples; called before the call's own figures are updated."""
        now = time.perf_counter()
        self.samples += samples
        if call.first_sound is None:
            self.first_sound.add(now - call.submitted)
        elif call.stream and now > call.runs_dry and not call.queued():
            self.underruns += 1

    def ended(self, call: Call) -> None:
        if isinstance(call.error, Cancelled):
            self.cancelled += 1
        elif call.error is not None:
            self.failed += 1
        else:
            self.finished += call.counts
            if call.first_sound is not None:  # not for sound that an earlier call has made
                self.real_time_factor.add((time.perf_counter() - call.submitted) / call.delivered)

    def read(self, **now: Any) -> dict[str, Any]:
        return now | dict(
            steps=self.steps, tokens=self.tokens,
            tokens_per_second=self.decoded_tokens / self.decode_seconds if self.decode_seconds else 0.0,
            sound_seconds=self.samples / S3GEN_RATE, finished=self.finished, cancelled=self.cancelled,
            failed=self.failed, underruns=self.underruns, first_sound=self.first_sound.read(),
            real_time_factor=self.real_time_factor.read(),
        )
