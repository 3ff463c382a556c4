"""What a speech token of this model means by definition: the phones of its two 20 ms halves.

The published model's codes are a result of training. A small network learns much faster from codes that are as
predictable as speech allows, so the eight ternary digits are defined here: four name the phone at the middle of the
first half, four that of the second. The teacher gives the position of each phone, so targets are free; the tokenizer
learns to recognize them. Pitch and loudness are left to the flow, which sees whole sentences.
"""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

PHONES = 81  # 3^4
SILENCE = 0
# Everything that the teacher's English phonemiser writes. Marks are merged with their phone.
PLAIN = ("a", "aɪ", "aʊ", "b", "d", "dʒ", "e", "eɪ", "f", "h", "i", "j", "k", "l", "m", "n", "o", "oʊ", "p", "s", "t",
         "tʃ", "u", "v", "w", "z", "æ", "ð", "ŋ", "ɐ", "ɑ", "ɔ", "ɔɪ", "ə", "ɚ", "ɛ", "ɜ", "ɡ", "ɪ", "ɹ", "ɾ", "ʃ",
         "ʊ", "ʌ", "ʒ", "ʔ", "θ", "ᵻ", "x")
VOWELS = ("a", "e", "i", "o", "u", "æ", "ɐ", "ɑ", "ɔ", "ə", "ɚ", "ɛ", "ɜ", "ɪ", "ʊ", "ʌ", "ᵻ")
SINGLE = tuple(p for p in PLAIN if len(p) == 1)
STRESSED = tuple(f"ˈ{v}" for v in VOWELS)
INDEX = {phone: i + 1 for i, phone in enumerate((*SINGLE, *STRESSED))}


def phone_frames(phonemes: list[str], samples: list[int], rate: int, frames: int) -> Tensor:
    """Returns the phone at the middle of each 20 ms frame, (frames,) of 0..80. Length and stress marks and blanks have
    their own duration in the teacher; it is added to their phone."""
    ids, stress = [], False
    last = SILENCE
    for phoneme in phonemes:
        if phoneme in ("ˈ", "ˌ"):
            stress = phoneme == "ˈ"
            ids.append(None)  # spoken with what follows
            continue
        if phoneme in ("ː", "̩", "_"):
            ids.append(last)
            continue
        key = f"ˈ{phoneme}" if stress and phoneme in VOWELS else phoneme
        if key in INDEX and phoneme in VOWELS:
            stress = False
        last = INDEX.get(key, SILENCE)
        # A blank between two words is no pause in the teacher's speech.
        ids.append(last if phoneme != " " else None)
    for i in reversed(range(len(ids))):
        if ids[i] is None:
            ids[i] = ids[i + 1] if i + 1 < len(ids) else SILENCE
    ends = torch.tensor(list(accumulate(samples)), dtype=torch.float64)
    middle = (torch.arange(frames, dtype=torch.float64) + 0.5) * rate / 50
    at = torch.searchsorted(ends, middle, right=True).clamp(max=len(ids) - 1)
    phones = torch.tensor(ids)[at]
    phones[middle >= ends[-1]] = SILENCE
    return phones


def pack(phones: Tensor) -> Tensor:
    """Returns (n,) codes at 25 Hz of (2n,) phones at 50 Hz."""
    first, second = phones[0::2], phones[1::2]
    return first + PHONES * second


def unpack(codes: Tensor) -> Tensor:
    return torch.stack([codes % PHONES, codes // PHONES], -1)


def sounds(codes: Tensor) -> list[int]:
    """Returns the phones of (n,) codes, without lengths and pauses."""
    found = unpack(codes.long()).flatten().unique_consecutive().tolist()
    return [phone for phone in found if phone != SILENCE]


def digits(codes: Tensor) -> Tensor:
    """Returns (..., 8) of -1, 0, 1: the targets of the quantizer's eight numbers."""
    return codes[..., None] // 3 ** torch.arange(8, device=codes.device) % 3 - 1
