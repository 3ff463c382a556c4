"""An utterance's sound, made of its tokens chunk by chunk; a whole utterance is one chunk.

The flow looks both ways, so what it makes of a beginning is not what it makes of the whole: a chunked mel is another
mel. It is made piece by piece, each continuing the last as an utterance continues the voice's prompt, and once made it
stays. The wave is exactly the one the vocoder makes of that mel as a whole: a sample is given out when nothing that can
still come reaches it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..config import FRAMES_PER_TOKEN, MEL_BINS, SAMPLES_PER_FRAME, SAMPLES_PER_TOKEN, TOKEN_RATE
from .mel import MelJob
from .noise import RequestNoise
from .wav import FADE, SIZES, WavRunner, fade_in

LOOKAHEAD = 3  # tokens that the encoder sees ahead: the mel of the last ones waits for those that follow
REMEMBERED = 5 * TOKEN_RATE  # tokens of the utterance itself that the flow continues from
FADE_FRAMES = 2 * FADE // SAMPLES_PER_FRAME  # the first samples given out hold the whole fade
GROWTH = 1.5  # of a chunk over the one before it: the flow reads the voice's prompt anew for each
LONGEST = 5 * TOKEN_RATE  # tokens of a chunk


def chunk_sizes(first: int, hold: int) -> Iterator[int]:
    """Tokens of each chunk: few at first, as somebody waits, then more and more. The sound always ends `hold` tokens
    before them, so the first chunk has as many more."""
    yield first + hold
    size, most = float(first), max(LONGEST, first)
    while True:
        size = min(size * GROWTH, most)
        yield round(size)


def whole_tokens(voice: dict[str, Any]) -> dict[str, Any]:
    """The voice with a prompt of as many tokens as its mel has pairs of frames: what follows stands right behind it."""
    ids, mel = voice["prompt_token"].view(1, -1), voice["prompt_feat"]
    n = min(ids.shape[1], mel.shape[1] // FRAMES_PER_TOKEN)
    return voice | {"prompt_token": ids[:, :n], "prompt_feat": mel[:, : FRAMES_PER_TOKEN * n]}


class MelState:
    """What an utterance's mel has come to: `job()` asks for more of it, `accept()` takes that."""

    def __init__(self, voice: dict[str, Any], noise: RequestNoise, steps: int | None = None) -> None:
        self.voice, self.noise, self.steps = voice, noise, steps
        self.count = 0  # tokens whose mel is made
        self.said = torch.zeros(0, dtype=torch.long, device=noise.device)  # the latest of them
        self.mel = torch.zeros(MEL_BINS, 0, device=noise.device)  # theirs
        self._new, self._last = self.said, False

    def job(self, tokens: Tensor, last: bool = False) -> MelJob | None:
        """All tokens so far -> what is to be solved next, if anything."""
        new, self._last = tokens[self.count :].to(self.noise.device).long(), last
        if len(new) <= (0 if last else LOOKAHEAD):
            return None
        self._new = new if last else new[:-LOOKAHEAD]
        if not self.count:
            voice = self.voice if last else whole_tokens(self.voice)
            return MelJob(new, voice, self.noise, self.steps)
        return MelJob(new, whole_tokens(self.voice), self.noise, self.steps, (self.said, self.mel))

    def accept(self, mel: Tensor) -> Tensor:
        """The job's mel -> (80, T) that continues what was given out before."""
        mel = mel if self._last else mel[:, : FRAMES_PER_TOKEN * len(self._new)]
        self.count += len(self._new)
        if not self._last:
            self.said = torch.cat([self.said, self._new])[-REMEMBERED:]
            self.mel = torch.cat([self.mel, mel], 1)[:, -FRAMES_PER_TOKEN * REMEMBERED :]
        return mel


class WaveState:
    """What an utterance's wave has come to: `window()` asks the vocoder for more of it, `accept()` takes that."""

    def __init__(self, runner: WavRunner, noise: RequestNoise) -> None:
        self.runner, self.noise = runner, noise
        self.hold = runner.hold  # frames at the end that wait for what follows
        self.harmonics = runner.hift.cfg.harmonics + 1
        self.phases: Tensor | None = None
        self.normal = torch.zeros(1, self.harmonics, 0, device=runner.device)
        self.mel = torch.zeros(MEL_BINS, 0, device=runner.device)
        self.given = 0  # frames whose samples were given out
        self._skip = self._end = 0  # frames of the window ahead of what is new; where that ends

    def window(self, mel: Tensor, last: bool = False) -> tuple[Tensor, Tensor] | None:
        """(80, T) that continues the mel so far -> the mel and the spectrum to be decoded next, if anything."""
        self.mel = torch.cat([self.mel, mel.float()], 1)
        total = self.mel.shape[1]
        start, end = self.given, total if last else total - self.hold
        if end <= start or (not last and end < FADE_FRAMES):
            return None
        runner, low = self.runner, start - self.runner.reach
        if runner.captured.on:  # no shorter than the smallest window that is captured
            low = min(low, total - SIZES[-1])
        low = max(0, low)
        self._skip, self._end = start - low, end
        # The source's phases add up from the first frame on, so it is made anew as a whole: it costs next to nothing.
        spectrum = runner.spectrum(self.mel, *self._source_noise(total, whole=last and not start))
        rate = (spectrum.shape[1] - 1) // total
        return self.mel[:, low:], spectrum[:, rate * low :]

    def _source_noise(self, frames: int, whole: bool) -> tuple[Tensor, Tensor]:
        """In upstream's order, for what it makes as a whole."""
        if self.phases is None:
            self.phases = self.noise.phases(self.harmonics)
        missing = SAMPLES_PER_FRAME * frames - self.normal.shape[2]
        self.normal = torch.cat([self.normal, self.noise.normal((1, self.harmonics, missing))], 2)
        if whole:
            self.noise.normal((1, missing, 1))  # upstream draws this too, to no use
        return self.phases, self.normal

    def accept(self, wave: Tensor) -> Tensor:
        """The window's samples -> those that continue the wave so far."""
        start, self.given = self.given, self._end
        first = SAMPLES_PER_FRAME * self._skip
        wave = wave[first : first + SAMPLES_PER_FRAME * (self._end - start)]
        return wave if start else fade_in(wave)


class Sound:
    """An utterance's sound so far."""

    def __init__(self, mel: MelState, wave: WaveState, drop_last_token: bool = False) -> None:
        self.mel, self.wave, self.drop = mel, wave, drop_last_token
        self.count = 0  # tokens of the chunk that is being made, and all before it
        self.last = False  # whether it is the last one
        self.samples = 0  # given out

    def begin(self, tokens: Tensor, last: bool) -> MelJob | None:
        """All tokens so far, control ids left out -> what the flow has to solve first, if anything."""
        self.count, self.last = len(tokens), last
        return self.mel.job(tokens, last)

    def window(self, mel: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """The job's mel -> what the vocoder has to decode next, if anything."""
        new = self.mel.mel[:, :0] if mel is None else self.mel.accept(mel)
        return self.wave.window(new, self.last)

    def accept(self, wave: Tensor | None) -> Tensor:
        """The window's samples -> those that continue the sound so far."""
        wave = self.mel.mel.new_zeros(0) if wave is None else self.wave.accept(wave)
        if self.drop and self.last:
            wave = wave[: max(0, SAMPLES_PER_TOKEN * max(1, self.count - 1) - self.samples)]
        self.samples += len(wave)
        return wave
