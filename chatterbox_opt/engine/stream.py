"""One utterance, made audible while its tokens are still being drawn.

The flow looks both ways, so what it makes of a beginning is not what it makes of the whole: a stream's mel is another
mel. It is made piece by piece, each continuing the last as an utterance continues the voice's prompt, and once made it
stays. The wave is exactly the one the vocoder makes of that mel as a whole: a sample is given out when nothing that can
still come reaches it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..config import FRAMES_PER_TOKEN, MEL_BINS, SAMPLES_PER_FRAME, TOKEN_RATE
from .mel import MelRunner
from .noise import RequestNoise
from .wav import FADE, SIZES, WavRunner, fade_in, full_float32

LOOKAHEAD = 3  # tokens that the encoder sees ahead: the mel of the last ones waits for those that follow
REMEMBERED = 5 * TOKEN_RATE  # tokens of the utterance itself that the flow continues from
FADE_FRAMES = 2 * FADE // SAMPLES_PER_FRAME  # the first samples given out hold the whole fade
F0_REACH = 5  # mel frames that a frame's fundamental frequency depends on, either side


class MelStream:
    def __init__(
        self, runner: MelRunner, voice: dict[str, Any], noise: RequestNoise, steps: int | None = None,
        check: Callable[[], None] | None = None,
    ) -> None:
        self.runner, self.voice, self.noise, self.steps, self.check = runner, whole_tokens(voice), noise, steps, check
        self.said = torch.zeros(0, dtype=torch.long, device=runner.device)  # tokens whose mel is made, the latest ones
        self.mel = torch.zeros(MEL_BINS, 0, device=runner.device)
        self.count = 0  # of all tokens whose mel is made

    def add(self, tokens: Tensor, last: bool = False) -> Tensor:
        """All tokens so far -> (80, T) of mel that continues what was given out before."""
        new = tokens[self.count :].to(self.runner.device).long()
        if len(new) <= (0 if last else LOOKAHEAD):
            return self.mel[:, :0]
        voice = self.voice | {"spoken": (self.said, self.mel)} if self.count else self.voice
        (mel,) = self.runner.render([new], [voice], [self.noise], self.steps, self.check)
        new = new if last else new[:-LOOKAHEAD]
        mel = mel[:, : FRAMES_PER_TOKEN * len(new)]
        self.count += len(new)
        self.said = torch.cat([self.said, new])[-REMEMBERED:]
        self.mel = torch.cat([self.mel, mel], 1)[:, -FRAMES_PER_TOKEN * REMEMBERED :]
        return mel


def whole_tokens(voice: dict[str, Any]) -> dict[str, Any]:
    """The voice with a prompt of as many tokens as its mel has pairs of frames: what follows stands right behind it."""
    ids, mel = voice["prompt_token"].view(1, -1), voice["prompt_feat"]
    n = min(ids.shape[1], mel.shape[1] // FRAMES_PER_TOKEN)
    return voice | {"prompt_token": ids[:, :n], "prompt_feat": mel[:, : FRAMES_PER_TOKEN * n]}


class WavStream:
    def __init__(self, runner: WavRunner, noise: RequestNoise) -> None:
        self.runner, self.noise = runner, noise
        self.hold = runner.reach + F0_REACH  # frames
        harmonics = runner.hift.cfg.harmonics + 1
        self.phases = noise.phases(harmonics)
        self.normal = torch.zeros(1, harmonics, 0, device=runner.device)
        self.mel = torch.zeros(MEL_BINS, 0, device=runner.device)
        self.given = 0  # frames whose samples were given out

    def add(self, mel: Tensor, last: bool = False) -> Tensor:
        """(80, T) that continues the mel so far -> samples that continue the wave so far."""
        self.mel = torch.cat([self.mel, mel.float()], 1)
        total = self.mel.shape[1]
        start, end = self.given, total if last else total - self.hold
        if end <= start or (not last and end < FADE_FRAMES):
            return self.mel.new_zeros(0)
        self.given = end
        missing = SAMPLES_PER_FRAME * total - self.normal.shape[2]
        self.normal = torch.cat([self.normal, self.noise.normal((1, self.normal.shape[1], missing))], 2)
        # The source's phases add up from the first frame on, so it is made anew as a whole: it costs next to nothing.
        runner = self.runner
        low = start - runner.reach
        if runner.captured.on:  # no shorter than the smallest window that is captured
            low = min(low, total - SIZES[-1])
        low = max(0, low)
        with runner.lock, full_float32(runner.device):
            spectrum = runner.hift.spectrum(runner.hift.source(self.mel[None], self.phases, self.normal))
            rate = (spectrum.shape[1] - 1) // total
            (wave,) = runner.decode([self.mel[:, low:]], [spectrum[:, rate * low :]])
        wave = wave[SAMPLES_PER_FRAME * (start - low) : SAMPLES_PER_FRAME * (end - low)]
        return wave if start else fade_in(wave)


class Stream:
    """Tokens so far in, samples that continue the sound so far out."""

    def __init__(self, mel: MelStream, wav: WavStream) -> None:
        self.mel, self.wav = mel, wav
        self.hold = -(-wav.hold // FRAMES_PER_TOKEN)  # tokens, rounded up, whose sound waits for what follows

    @torch.inference_mode()
    def add(self, tokens: Tensor, last: bool = False) -> Tensor:
        return self.wav.add(self.mel.add(tokens, last), last)
