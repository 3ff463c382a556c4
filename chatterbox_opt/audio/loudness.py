"""Loudness by ITU-R BS.1770-4 and EBU R 128, for levelling Turbo's prompts and the pieces of a text."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from torch import Tensor

logger = logging.getLogger(__name__)

Wave = TypeVar("Wave", np.ndarray, Tensor)

BLOCK = 0.4  # s; each block is gated
STEP = 0.25  # of a block, between the starts of blocks
ABSOLUTE_GATE = -70.0  # LUFS
RELATIVE_GATE = -10.0  # LU below the mean of the blocks above the absolute gate
CEILING = 0.89  # of full scale, -1 dB: no gain raises a peak above it
TAIL = 0.35  # s until the high-pass response has decayed to e^-80


def normalize_loudness(wav: Wave, rate: int, target: float = -27.0) -> Wave:
    """Returns the samples, (N,) or (N, channels), scaled to `target` LUFS, in the same float type; unchanged if they
    cannot be measured, as whole numbers cannot: what full scale is, they do not say."""
    samples = wav.detach().float().cpu().numpy() if isinstance(wav, Tensor) else np.asarray(wav)
    whole = not wav.is_floating_point() if isinstance(wav, Tensor) else samples.dtype.kind != "f"
    loudness = math.nan if whole else integrated_loudness(samples, rate)
    gain = 10.0 ** ((target - loudness) / 20.0) if math.isfinite(loudness) else math.nan
    if not math.isfinite(gain) or gain <= 0.0:
        logger.warning("the loudness of %.2f s cannot be measured; the level is left alone", samples.size / rate)
        return wav
    return wav * gain if isinstance(wav, Tensor) else (samples * gain).astype(samples.dtype)


def level_loudness(parts: Sequence[Tensor], rate: int, target: float) -> list[Tensor]:
    """Returns each (N,) scaled to `target` LUFS as far as its peak allows. Those too short or too quiet to be measured
    are scaled like the average of the others."""
    measured = [integrated_loudness(part.detach().float().cpu().numpy(), rate) for part in parts]
    known = [loudness for loudness in measured if math.isfinite(loudness)]
    if not known:
        return list(parts)
    average = sum(known) / len(known)
    return [_lifted(part, target - (loudness if math.isfinite(loudness) else average))
            for part, loudness in zip(parts, measured)]


def _lifted(part: Tensor, decibels: float) -> Tensor:
    peak = float(part.abs().max())
    gain = 10.0 ** (decibels / 20.0)
    return part * (min(gain, max(1.0, CEILING / peak)) if peak else gain)


def integrated_loudness(wav: np.ndarray, rate: int) -> float:
    """(N,) or (N, channels), left and right first -> LUFS; NaN for less than one block of 0.4 s, minus infinity for
    silence."""
    if len(wav) < BLOCK * rate:
        return math.nan
    channels = wav.reshape(len(wav), -1).T
    energy = np.concatenate([[0.0], np.cumsum(sum(np.square(k_weighted(channel, rate)) for channel in channels))])
    count = round((len(wav) / rate - BLOCK) / (BLOCK * STEP)) + 1
    index = np.arange(count)
    start = (BLOCK * (index * STEP) * rate).astype(np.int64)
    stop = (BLOCK * (index * STEP + 1) * rate).astype(np.int64).clip(max=len(wav))
    power = (energy[stop] - energy[start]) / (BLOCK * rate)
    power = power[_lufs(power) >= ABSOLUTE_GATE]
    if not len(power):
        return -math.inf
    power = power[_lufs(power) > _lufs(power.mean()) + RELATIVE_GATE]
    return float(_lufs(power.mean()))


def _lufs(power: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return -0.691 + 10.0 * np.log10(power)


def k_weighted(wav: np.ndarray, rate: int) -> np.ndarray:
    """Returns (N,) filtered by the head's high shelf and the high-pass, in float64.

    Both filters are recursive. Multiplying by their joint frequency response, on a grid longer than the wave plus the
    filters' decay, gives the same in one FFT.
    """
    size = 1 << (len(wav) + int(TAIL * rate) - 1).bit_length()
    z = np.exp(-2j * np.pi * np.arange(size // 2 + 1) / size)  # one sample's delay
    spectrum = np.fft.rfft(wav.astype(np.float64), size)
    for above, below in (_high_shelf(rate), _high_pass(rate)):
        spectrum *= np.polyval(above[::-1], z) / np.polyval(below[::-1], z)
    return np.fft.irfft(spectrum, size)[: len(wav)]


def _high_shelf(
    rate: int, gain: float = 4.0, q: float = 1 / math.sqrt(2), corner: float = 1500.0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns biquad coefficients, lowest delay first: `gain` dB above `corner` Hz."""
    a, w = 10.0 ** (gain / 40.0), 2.0 * math.pi * corner / rate
    cos, slope = math.cos(w), math.sin(w) / q * math.sqrt(a)
    up, down = a + 1, a - 1
    above = np.array([a * (up + down * cos + slope), -2 * a * (down + up * cos), a * (up + down * cos - slope)])
    below = np.array([up - down * cos + slope, 2 * (down - up * cos), up - down * cos - slope])
    return above, below


def _high_pass(rate: int, q: float = 0.5, corner: float = 38.0) -> tuple[np.ndarray, np.ndarray]:
    w = 2.0 * math.pi * corner / rate
    cos, alpha = math.cos(w), math.sin(w) / (2 * q)
    above = np.array([(1 + cos) / 2, -(1 + cos), (1 + cos) / 2])
    return above, np.array([1 + alpha, -2 * cos, 1 - alpha])
