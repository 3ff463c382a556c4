"""An utterance's sound, made from its tokens chunk by chunk; without streaming the utterance is one chunk.

The flow attends in both directions, so the mel of a chunked utterance differs from that of the whole one. Each chunk
continues the one before it as an utterance continues the voice's prompt, and a finished mel frame never changes. The
wave equals the one the vocoder makes of that whole mel: a sample is returned once no later frame can reach it.
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

LOOKAHEAD = 3  # tokens the encoder looks ahead: the mel of a chunk's last tokens waits for the next chunk
REMEMBERED = 5 * TOKEN_RATE  # tokens of the utterance itself that the flow gets as context
FADE_FRAMES = 2 * FADE // SAMPLES_PER_FRAME  # the first samples returned contain the whole fade-in
GROWTH = 1.5  # length of a chunk over the one before it: the flow reads the voice's prompt again for each
LONGEST = 5 * TOKEN_RATE  # tokens of a chunk


def chunk_sizes(first: int, hold: int) -> Iterator[int]:
    """Yields the tokens of each chunk: `first` at first, as a listener waits, then more and more. Sound always ends
    `hold` tokens before the chunk does, so the first chunk is longer by that."""
    yield first + hold
    size, most = float(first), max(LONGEST, first)
    while True:
        size = min(size * GROWTH, most)
        yield round(size)


def whole_tokens(voice: dict[str, Any]) -> dict[str, Any]:
    """Returns the voice with its prompt tokens cut to the frames of its mel (two per token), so that no gap follows."""
    ids, mel = voice["prompt_token"].view(1, -1), voice["prompt_feat"]
    n = min(ids.shape[1], mel.shape[1] // FRAMES_PER_TOKEN)
    return voice | {"prompt_token": ids[:, :n], "prompt_feat": mel[:, : FRAMES_PER_TOKEN * n]}


class MelState:
    """An utterance's mel so far: `job()` returns what to solve next, `accept()` takes the result."""

    def __init__(self, voice: dict[str, Any], noise: RequestNoise, steps: int | None = None) -> None:
        self.voice, self.noise, self.steps = voice, noise, steps
        self.count = 0  # tokens whose mel is finished
        self.said = torch.zeros(0, dtype=torch.long, device=noise.device)  # the latest of them
        self.mel = torch.zeros(MEL_BINS, 0, device=noise.device, dtype=torch.float32)  # their frames
        self._new, self._last = self.said, False

    def job(self, tokens: Tensor, last: bool = False) -> MelJob | None:
        """Takes all tokens so far; returns what the flow solves next, if anything."""
        new, self._last = tokens[self.count :].to(self.noise.device).long(), last
        if len(new) <= (0 if last else LOOKAHEAD):
            return None
        self._new = new if last else new[:-LOOKAHEAD]
        if not self.count:
            voice = self.voice if last else whole_tokens(self.voice)
            return MelJob(new, voice, self.noise, self.steps)
        return MelJob(new, whole_tokens(self.voice), self.noise, self.steps, (self.said, self.mel))

    def accept(self, mel: Tensor) -> Tensor:
        """Takes the job's mel; returns the (80, T) that continue what was returned before."""
        mel = mel if self._last else mel[:, : FRAMES_PER_TOKEN * len(self._new)]
        self.count += len(self._new)
        if not self._last:
            self.said = torch.cat([self.said, self._new])[-REMEMBERED:]
            self.mel = torch.cat([self.mel, mel], 1)[:, -FRAMES_PER_TOKEN * REMEMBERED :]
        return mel


class WaveState:
    """An utterance's wave so far: `window()` returns what the vocoder decodes next, `accept()` takes the result."""

    def __init__(self, runner: WavRunner, noise: RequestNoise) -> None:
        self.runner, self.noise = runner, noise
        self.hold = runner.hold  # frames at the end that wait for those that follow
        self.harmonics = runner.hift.cfg.harmonics + 1
        self.phases: Tensor | None = None
        self.normal = torch.zeros(1, self.harmonics, 0, device=runner.device, dtype=torch.float32)
        self.mel = torch.zeros(MEL_BINS, 0, device=runner.device, dtype=torch.float32)
        self.returned = 0  # frames whose samples were returned
        self._skip = self._end = 0  # window frames before the new ones; window frame at which these end

    def window(self, mel: Tensor, last: bool = False) -> tuple[Tensor, Tensor] | None:
        """Takes the (80, T) that continue the mel; returns mel and source spectrum to be decoded next, if anything."""
        self.mel = torch.cat([self.mel, mel.float()], 1)
        total = self.mel.shape[1]
        start, end = self.returned, total if last else total - self.hold
        if end <= start or (not last and end < FADE_FRAMES):
            return None
        runner, low = self.runner, start - self.runner.reach
        if runner.captured.on:  # at least the smallest captured window
            low = min(low, total - SIZES[-1])
        low = max(0, low)
        self._skip, self._end = start - low, end
        # The source's phase accumulates from the first frame on, so it is recomputed as a whole, which costs little.
        spectrum = runner.spectrum(self.mel, *self._source_noise(total, whole=last and not start))
        rate = (spectrum.shape[1] - 1) // total
        return self.mel[:, low:], spectrum[:, rate * low :]

    def _source_noise(self, frames: int, whole: bool) -> tuple[Tensor, Tensor]:
        """Draws the source's noise in upstream's order; `whole`: the utterance is a single chunk."""
        if self.phases is None:
            self.phases = self.noise.phases(self.harmonics)
        missing = SAMPLES_PER_FRAME * frames - self.normal.shape[2]
        self.normal = torch.cat([self.normal, self.noise.normal((1, self.harmonics, missing))], 2)
        if whole:
            self.noise.normal((1, missing, 1))  # upstream draws this too, without using it
        return self.phases, self.normal

    def accept(self, wave: Tensor) -> Tensor:
        """Takes the window's samples; returns those that continue the wave."""
        start, self.returned = self.returned, self._end
        first = SAMPLES_PER_FRAME * self._skip
        wave = wave[first : first + SAMPLES_PER_FRAME * (self._end - start)]
        return wave if start else fade_in(wave)


class Sound:
    """An utterance's sound so far: its mel and its wave."""

    def __init__(self, mel: MelState, wave: WaveState, drop_last_token: bool = False) -> None:
        self.mel, self.wave, self.drop = mel, wave, drop_last_token
        self.count = 0  # tokens of the current chunk and all before it
        self.last = False  # whether that chunk is the last one
        self.samples = 0  # returned

    def begin(self, tokens: Tensor, last: bool) -> MelJob | None:
        """Takes all tokens so far, without control ids; returns what the flow solves, if anything."""
        self.count, self.last = len(tokens), last
        return self.mel.job(tokens, last)

    def window(self, mel: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Takes the job's mel; returns what the vocoder decodes, if anything."""
        new = self.mel.mel[:, :0] if mel is None else self.mel.accept(mel)
        return self.wave.window(new, self.last)

    def accept(self, wave: Tensor | None) -> Tensor:
        """Takes the window's samples; returns those that continue the sound."""
        wave = self.mel.mel.new_zeros(0) if wave is None else self.wave.accept(wave)
        if self.drop and self.last:
            wave = wave[: max(0, SAMPLES_PER_TOKEN * max(1, self.count - 1) - self.samples)]
        self.samples += len(wave)
        return wave
