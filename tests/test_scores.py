"""The scores in scores.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chatterbox_opt import OptimizedChatterboxTTS
from chatterbox_opt.listening import Listener
from chatterbox_opt.scores import PlausibleLength, Take, VoiceLikeness, WordsHeard

FOX = "The quick brown fox jumps over the lazy dog."


def take(text=FOX, seconds=3.0, wav=None, voice=None, read=None):
    return Take(text, read or text, torch.zeros(round(25 * seconds)), "eos", 0, voice, 24_000, wav)


def test_length_prefers_ordinary_speed():
    score = PlausibleLength()
    assert not score.needs_sound
    scores = {seconds: score(take(seconds=seconds)) for seconds in (0.5, 1.5, 3.0, 3.5, 6.0, 20.0)}
    assert max(scores, key=scores.get) in (3.0, 3.5)
    assert scores[0.5] < scores[1.5] < scores[3.0] > scores[6.0] > scores[20.0]
    assert score(take(seconds=0.0)) < scores[0.5]


def test_length_counts_the_text_that_is_read():
    """27 letters, or 78."""
    score = PlausibleLength()
    long = "one thousand nine hundred and eighty four dollars and ninety nine cents, he said"
    assert score(take("$1,984.99, he said.", 5.7, read=long)) > score(take("$1,984.99, he said.", 5.7))


class FixedListener:
    def __init__(self, text):
        self.text = text

    def hear(self, wav, rate):
        return self.text


@pytest.mark.parametrize(
    ("text", "read", "heard", "score"),
    [
        ("He has two dogs.", None, "he has 2 dogs", 0.0),
        ("He has two dogs.", None, "he had two dogs", -0.25),
        ("He has 25 dogs.", "He has twenty five dogs.", "He has 25 dogs.", 0.0),
        ("He has 25 dogs.", "He has twenty five dogs.", "He has twenty-five dogs", 0.0),
        ("He has two dogs.", None, "", -1.0),
        ("...", None, "", 0.0),
        ("今天天气很好。", None, "今天天汽很好", -1 / 6),  # each character is a word
        ("用AI写字", None, "用 AI 写", -1 / 4),
        ("が ぱ", None, "か\u3099ば", -1 / 2),
        ("हिन्दी में लिखो।", None, "हिन्दी में लिखी", -1 / 3),  # another vowel sign is an error
        ("क्\u200dया हुआ?", None, "क्या हुआ", 0.0),
        ("Cafe\u0301 ❤\ufe0f noir", None, "café noir", 0.0),
    ],
)
def test_words_are_counted_in_either_spelling(text, read, heard, score):
    assert WordsHeard(FixedListener(heard))(take(text, read=read, wav=torch.zeros(1, 9))) == pytest.approx(score)


def test_spoken_words_are_heard():
    if missing := Listener.missing():
        pytest.skip(missing)
    model, score = OptimizedChatterboxTTS.from_mini(), WordsHeard()
    (speech,) = model.speak(model.jobs([FOX], seeds=1), takes=2, score=score)
    scores = speech.choices[0].scores
    assert max(scores) == scores[speech.choices[0].kept]
    assert min(scores) >= -0.5
    assert score(take("Nothing of this kind was ever said by anyone.", wav=speech.wav)) < -0.7


def test_a_voice_is_most_like_itself():
    model = OptimizedChatterboxTTS.from_random(enable_watermark=False)
    rng, time = np.random.default_rng(0), np.arange(24_000 * 4) / 24_000
    low = (0.2 * np.sign(np.sin(2 * np.pi * 110 * time)) + 0.01 * rng.standard_normal(len(time))).astype("float32")
    high = (0.2 * np.sin(2 * np.pi * 900 * time)).astype("float32")
    voice, score = model.prepare_voice(low, sample_rate=24_000), VoiceLikeness(model)
    own, other = (score(take(wav=torch.from_numpy(w)[None], voice=voice)) for w in (low, high))
    assert own == pytest.approx(1.0, abs=0.02)
    assert other < own
