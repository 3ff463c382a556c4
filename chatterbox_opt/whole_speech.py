"""The sink of calls that return whole speech: joins utterances to one wave per text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from .audio.joins import join, places
from .audio.loudness import level_loudness
from .config import S3GEN_RATE
from .engine.request import Utterance
from .voice import detached_copy

Mark = Callable[[Sequence[Tensor]], list[Tensor]]  # watermarks (N,) waves


class WholeSpeech:
    """Collects rendered utterances and joins those of each job to one wave."""

    def __init__(
        self, per_job: Sequence[Sequence[Utterance]], mark: Mark | None = None,
        joined: Callable[[Sequence[Tensor]], Tensor] | None = None, put: Callable[[Tensor], None] | None = None,
        levels: Sequence[float | None] = (), sounds: Mapping[Utterance, Tensor] | None = None,
    ) -> None:
        """`joined` replaces join(). `put` is called with each job's wave at the end. `levels` are LUFS per job.
        `sounds` are (N,) waves rendered before: of all utterances, or of none."""
        self.per_job, self.mark, self.joined, self.put = per_job, mark, joined, put
        self.levels = levels or [None] * len(per_job)
        self.parts: dict[Utterance, Tensor] = dict(sounds or {})
        self.places: dict[Utterance, tuple[int, int]] = {}  # (first sample, past the last) in its job's wave
        self.waves: list[Tensor] = []  # (1, N) float32 on the CPU

    def add(self, utterance: Utterance, wave: Tensor, last: bool) -> None:
        self.parts[utterance] = wave

    def finish(self) -> None:
        waves = [self._wave(own, level) for own, level in zip(self.per_job, self.levels)]
        sounding = [i for i, wave in enumerate(waves) if len(wave)]
        if self.mark is not None and sounding:
            for i, marked in zip(sounding, self.mark([waves[i] for i in sounding])):
                waves[i] = marked
        self.waves = [detached_copy(wave.float(), "cpu").unsqueeze(0) for wave in waves]
        self.parts.clear()
        if self.put is not None:
            for wave in self.waves:
                self.put(wave)

    def _wave(self, own: Sequence[Utterance], level: float | None) -> Tensor:
        heard = [u for u in own if len(self.parts[u])]
        parts = [self.parts[u] for u in heard]
        if self.joined is not None:
            return self.joined(parts)
        if level is not None:
            parts = level_loudness(parts, S3GEN_RATE, level)
        before = [u.before for u in heard]
        found, end = iter(places([len(part) for part in parts], before)), 0
        for u in own:
            first, end = next(found) if len(self.parts[u]) else (end, end)
            self.places[u] = first, end
        return join(parts, before, own[-1].after)
