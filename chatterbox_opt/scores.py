"""How good one take of a piece is: callbacks for `takes=`, the higher the better. Any function of a Take is one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .audio.io import resample
from .config import S3_RATE, TOKEN_RATE
from .listening import Listener, word_errors
from .models.voice_encoder import speaker_embedding
from .text.split import width


@dataclass(frozen=True, eq=False)
class Take:
    """One version of a piece of a text. A score whose `needs_sound` is False is asked ahead of its sound."""

    text: str  # the piece
    read: str  # as the model read it
    tokens: Tensor  # (n,) long, 25 a second
    stopped: str  # why it ended: "eos" | "limit" | "guard"
    seed: int
    voice: Any  # Conditionals
    sr: int
    wav: Tensor | None = None  # (1, N) float32 on the CPU, without watermark


class PlausibleLength:
    """0 where a take is as long as its text is in ordinary speech, less the further it is off: -0.7 is half or double
    the time. Of tokens alone, so that only the best take is rendered."""

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
    """Minus the word error rate of what Whisper hears: 0 is every word. Against the piece, or the words that it was
    read as, whichever is nearer: a listener may write 5 or five."""

    def __init__(self, listener: Listener | None = None) -> None:
        self.listener = listener or Listener()

    def __repr__(self) -> str:
        return f"WordsHeard({self.listener!r})"

    def __call__(self, take: Take) -> float:
        heard = self.listener.hear(take.wav, take.sr)
        counted = [word_errors(said, heard) for said in (take.text, take.read)]
        return -min(errors / max(count, 1) for errors, count in counted)


class VoiceLikeness:
    """Cosine between the take's voice and the one that it was to have, by the model's own voice encoder; 1 is the same.
    """

    def __init__(self, model: Any) -> None:
        self.encoder, self.device = model.ve, model.ve.proj.weight.device

    def __repr__(self) -> str:
        return "VoiceLikeness()"

    @torch.inference_mode()
    def __call__(self, take: Take) -> float:
        if take.wav is None:
            raise ValueError("a take is compared by its sound, and it has none")
        wav = resample(take.wav[0], take.sr, S3_RATE).to(self.device)
        wanted = take.voice.t3.speaker_emb.to(self.device).float()
        return float(torch.cosine_similarity(speaker_embedding(self.encoder, wav).float(), wanted)[0])
