"""Scores of a take for `score=`: any function from a Take to a number, higher is better."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .audio.io import resample
from .computing import computing
from .config import S3_RATE, TOKEN_RATE
from .device_lock import device_lock
from .listening import Listener, word_errors
from .models.voice_encoder import speaker_embedding
from .text.split import width


@dataclass(frozen=True, eq=False)
class Take:
    """One take of a piece of a text. A score with `needs_sound = False` is called before the take is rendered."""

    text: str  # the piece
    read: str  # as the model read it
    tokens: Tensor  # (n,) long, 25 a second
    stopped: str  # why it ended: "eos" | "limit" | "guard"
    seed: int
    voice: Any  # Conditionals
    sr: int
    wav: Tensor | None = None  # (1, N) float32 on the CPU, without watermark


class PlausibleLength:
    """Returns 0 for a take as long as its text in ordinary speech, and less the further its length is from that: -0.7
    for half or double. Needs tokens only, so that only the best take is rendered."""

    needs_sound = False

    def __init__(self, characters_per_second: float = 15.0, silence: float = 0.4) -> None:
        """`silence`: seconds at the ends. A Han, kana or Hangul character counts as three."""
        self.characters_per_second, self.silence = characters_per_second, silence

    def __repr__(self) -> str:
        return f"PlausibleLength({self.characters_per_second}, {self.silence})"

    def __call__(self, take: Take) -> float:
        expected = self.silence + width(take.read.strip()) / self.characters_per_second
        return -abs(math.log(max(len(take.tokens), 1) / TOKEN_RATE / expected))


class WordsHeard:
    """Returns minus the word error rate of Whisper's transcript: 0 if every word is right. Compares with the piece and
    with what the model read, and takes the better one: Whisper may write "5" or "five"."""

    def __init__(self, listener: Listener | None = None) -> None:
        self.listener = listener or Listener()

    def __repr__(self) -> str:
        return f"WordsHeard({self.listener!r})"

    def __call__(self, take: Take) -> float:
        heard = self.listener.hear(take.wav, take.sr)
        counted = [word_errors(said, heard) for said in (take.text, take.read)]
        return -min(errors / max(count, 1) for errors, count in counted)


class VoiceLikeness:
    """Returns the cosine between the take's speaker embedding and its voice's, by the model's own encoder."""

    def __init__(self, model: Any) -> None:
        self.encoder, self.device = model.ve, model.ve.proj.weight.device

    def __repr__(self) -> str:
        return "VoiceLikeness()"

    @torch.inference_mode()
    def __call__(self, take: Take) -> float:
        if take.wav is None:
            raise ValueError("the take has no sound, by which its voice is compared")
        with device_lock(self.device), computing(self.device):
            wav = resample(take.wav[0], take.sr, S3_RATE)
            wanted = take.voice.t3.speaker_emb.to(self.device).float()
            found = speaker_embedding(self.encoder, wav.to(self.device)).float()
            return float(torch.cosine_similarity(found, wanted)[0])
