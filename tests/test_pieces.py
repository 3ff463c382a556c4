"""Where characters of a text are in its sound: in calls, batches, streams and conversions."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from chatterbox_opt import OptimizedChatterboxTTS, OptimizedChatterboxTurboTTS, OptimizedChatterboxVC
from chatterbox_opt.audio.joins import PAUSE
from chatterbox_opt.audio.loudness import integrated_loudness

RATE = 24_000
TEXT = " First, a sentence of some length. Then another one, no longer.  And the last of all is here!\n\nWell. "
SHORT = dict(max_new_tokens=14)


@pytest.fixture(scope="module")
def model():
    return OptimizedChatterboxTTS.from_random(size="tiny", seed=0, enable_watermark=False)


def speak(model, text=TEXT, max_chars=40, align=None, **how):
    (speech,) = model.speak(model.jobs([text], seeds=3, **SHORT, **how), max_chars=max_chars, align=align)
    return speech


def silent(wav: torch.Tensor) -> bool:
    return not wav.any()


def test_pieces_add_up_to_the_text_and_stand_in_the_sound(model):
    speech = speak(model)
    pieces = speech.pieces
    assert len(pieces) > 2
    assert "".join(TEXT[slice(*p.chars)] for p in pieces) == TEXT
    assert [TEXT[slice(*p.chars)].strip() for p in pieces] == [p.text for p in pieces]
    assert [p.stop for p in pieces] == speech.stops
    for piece, tokens in zip(pieces, speech.tokens):
        assert torch.equal(piece.tokens, tokens)
        assert piece.samples[1] - piece.samples[0] == 960 * len(tokens)
    for before, after in pairwise(pieces):
        assert after.samples[0] - before.samples[1] == round(PAUSE * RATE)
        assert silent(speech.wav[0, before.samples[1] : after.samples[0]])
    assert (pieces[0].samples[0], pieces[-1].samples[1]) == (0, speech.wav.shape[1])


def test_a_text_that_fits_is_one_piece(model):
    (piece,) = speak(model, "Hello. ", max_chars=280).pieces
    assert (piece.text, piece.chars) == ("Hello. ", (0, 7))
    (piece,) = speak(model, TEXT, max_chars=None).pieces
    assert piece.chars == (0, len(TEXT))


@pytest.mark.parametrize("watermark", [False, True])
def test_chunks_of_a_stream_say_which_characters_they_are_of(watermark):
    model = OptimizedChatterboxTTS.from_random(size="tiny", seed=0, enable_watermark=watermark)
    wanted = speak(model)
    stream = model.generate_stream(TEXT, seed=3, max_chars=40, **SHORT)
    heard, chars = [], []
    for chunk in stream:
        heard.append(chunk)
        chars.append(stream.chars)
    wav = torch.cat(heard, 1)
    assert wav.shape == wanted.wav.shape
    assert list(dict.fromkeys(chars)) == [p.chars for p in wanted.pieces]
    assert [(p.text, p.chars, p.samples, p.stop) for p in stream.pieces] == [
        (p.text, p.chars, p.samples, p.stop) for p in wanted.pieces
    ]


def test_a_stream_that_comes_as_a_whole_has_pieces_too(model):
    stream = model.submit(TEXT, seed=3, max_chars=40, **SHORT)
    (wav,) = list(stream)
    assert stream.chars == (0, len(TEXT))
    assert [p.samples for p in stream.pieces] == [p.samples for p in speak(model).pieces]
    assert torch.equal(wav, speak(model).wav)


def test_a_conversion_is_one_piece_without_text():
    vc = OptimizedChatterboxVC.from_random(size="tiny", enable_watermark=False)
    audio = 0.1 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    speech = vc.speak(audio, sample_rate=16_000, seed=1)
    (piece,) = speech.pieces
    assert (piece.text, piece.chars, piece.samples) == ("", (0, 0), (0, speech.wav.shape[1]))
    assert torch.equal(speech.wav, vc.generate(audio, sample_rate=16_000, seed=1))
    assert len(piece.tokens) == 25
    assert json.loads(speech.to_json())["pieces"][0]["tokens"] == 25
    assert speech.to_srt() == ""


def test_captions_of_a_speech(model):
    speech = speak(model)
    assert speech.to_srt().count(" --> ") == len(speech.pieces) == speech.to_vtt().count(" --> ")
    notes = json.loads(speech.to_json())
    assert notes["seconds"] == speech.wav.shape[1] / RATE
    assert [p["chars"] for p in notes["pieces"]] == [list(p.chars) for p in speech.pieces]


# ---- words ---------------------------------------------------------------------------------------


def test_words_are_in_order_and_inside_their_piece_whatever_the_aligner_says(model):
    asked = []

    def wild(wave, rate, text):
        asked.append((len(wave), rate, text))
        return [(word, (-1) ** i * 0.3 * i, 0.1 - i) for i, word in enumerate(text.split())]

    speech = speak(model, align=wild)
    assert asked == [(p.samples[1] - p.samples[0], RATE, p.text) for p in speech.pieces]
    latest = 0.0
    for piece in speech.pieces:
        assert [w.text for w in piece.words] == piece.text.split()
        assert piece.samples[0] / RATE <= piece.words[0].start
        assert piece.words[-1].end <= piece.samples[1] / RATE
        for word in piece.words:
            assert latest <= word.start <= word.end
            latest = word.end


def test_an_aligner_that_returns_nan_is_refused(model):
    with pytest.raises(ValueError, match=r"align: 'x' is at nan"):
        speak(model, align=lambda *_: [("x", math.nan, 1.0)])


# ---- marks, breath, loudness ----------------------------------------------------------------------


def test_marks_are_plain_text_without_markup(model):
    text = "One. [pause 0.5s] Two."
    assert speak(model, text).pieces[0].text == text
    speech = speak(model, text, markup=True)
    assert [p.text for p in speech.pieces] == ["One.", "Two."]
    assert [text[slice(*p.chars)] for p in speech.pieces] == ["One. ", "[pause 0.5s] Two."]
    first, second = (p.samples for p in speech.pieces)
    assert second[0] - first[1] == RATE // 2


def test_pauses_at_both_ends_and_between_paragraphs(model):
    speech = speak(model, "[pause 0.2s] One.\n\nTwo. [pause 0.4s]", markup=True)
    (a, b), (c, d) = (p.samples for p in speech.pieces)
    assert (a, c - b, speech.wav.shape[1] - d) == (4800, round(0.6 * RATE), 9600)
    assert silent(speech.wav[0, :a])
    assert silent(speech.wav[0, d:])
    assert speech.pieces[-1].chars[1] == len("[pause 0.2s] One.\n\nTwo. [pause 0.4s]")


@pytest.mark.parametrize("watermark", [False, True])
def test_marks_in_a_stream(watermark):
    model = OptimizedChatterboxTTS.from_random(size="tiny", seed=0, enable_watermark=watermark)
    text = "[pause 0.2s] One. [pause 0.3s] Two. [pause 0.4s]"
    wanted = speak(model, text, markup=True)
    stream = model.generate_stream(text, seed=3, markup=True, **SHORT)
    wav = torch.cat(list(stream), 1)
    assert wav.shape == wanted.wav.shape
    assert [p.samples for p in stream.pieces] == [p.samples for p in wanted.pieces]


def test_a_voice_of_a_mark_speaks_its_part(model):
    other = model.conds.to("cpu")
    other.gen["embedding"] = -other.gen["embedding"]
    text = "One. [voice other] Two. [voice] Three."
    plain = speak(model, text.replace(" other", ""), markup=True)
    speech = speak(model, text, markup={"other": other})
    same = [torch.equal(plain.wav[0, slice(*a.samples)], speech.wav[0, slice(*b.samples)])
            for a, b in zip(plain.pieces, speech.pieces)]
    assert same == [True, False, True]
    with pytest.raises(ValueError, match="line 1, column 6: there is no voice 'other'; known: none"):
        speak(model, text, markup=True)
    with pytest.raises(ValueError, match="markup is list"):
        model.generate("One.", markup=["other"])


def test_languages_are_for_the_multilingual_model(model):
    with pytest.raises(ValueError, match="speak 'fr'; it speaks its own only"):
        speak(model, "One. [lang fr] Deux.", markup=True)


def test_turbo_keeps_its_own_marks():
    model = OptimizedChatterboxTurboTTS.from_random(size="tiny", seed=0, enable_watermark=False)
    model.tokenizer.tokenizer.add_tokens(["[chuckle]"])
    assert [p.text for p in speak(model, "Oh [chuckle] well.", markup=True).pieces] == ["Oh [chuckle] well."]
    with pytest.raises(ValueError, match=r"\[giggle\] is unknown; known: .*\[chuckle\]"):
        speak(model, "Oh [giggle] well.", markup=True)


def test_breath_sets_pauses_by_punctuation(model):
    text = "First, a sentence of some length. Then another one, no longer.\n\nAnd the last of all is here!"
    speech = speak(model, text, breath=True)
    assert [p.text[-1] for p in speech.pieces] == [".", ".", "!"]
    rooms = [b.samples[0] - a.samples[1] for a, b in pairwise(speech.pieces)]
    assert rooms == [round(0.3 * RATE), round(0.6 * RATE)], "behind a sentence, behind a paragraph"


def test_breath_is_of_what_is_said_and_not_of_the_marks_between(model):
    text = "Hello there. [voice] Bonjour you. [voice] and more, [voice] So what?"
    speech = speak(model, text, breath=True, markup=True)
    rooms = [b.samples[0] - a.samples[1] for a, b in pairwise(speech.pieces)]
    assert rooms == [round(0.3 * RATE), round(0.12 * RATE), round(0.12 * RATE)]
    speech = speak(model, "x" * 90, breath=True)
    assert {b.samples[0] - a.samples[1] for a, b in pairwise(speech.pieces)} == {0}, "within a word there is none"


def test_no_click_at_a_seam(model):
    """Each piece begins and ends in silence: the step at its edge is no larger than those inside."""
    for how in ({}, {"breath": True}, {"loudness": -20.0}):
        speech = speak(model, **how)
        wav = speech.wav[0]
        for piece in speech.pieces[1:]:
            first = piece.samples[0]
            inside = wav[slice(*piece.samples)].diff().abs().max()
            assert wav[first - 1] == 0
            assert (wav[first] - wav[first - 1]).abs() < 0.01 * inside
        for piece in speech.pieces[:-1]:
            end = piece.samples[1]
            inside = wav[slice(*piece.samples)].diff().abs().max()
            assert (wav[end] - wav[end - 1]).abs() < 0.01 * inside


def test_loudness_is_even_between_pieces(model):
    plain, even = speak(model), speak(model, loudness=-30.0)
    assert [p.samples for p in plain.pieces] == [p.samples for p in even.pieces]

    def levels(speech) -> list[float]:
        wav = speech.wav[0].numpy()
        return [integrated_loudness(wav[slice(*p.samples)], RATE) for p in speech.pieces]

    assert levels(even) == pytest.approx([-30.0] * len(even.pieces), abs=0.5)
    assert max(abs(level + 30) for level in levels(plain)) > 1
    with pytest.raises(ValueError, match="first_chunk=None"):
        next(model.generate_stream(TEXT, loudness=-20.0))
    with pytest.raises(ValueError, match="LUFS from -60 to -5"):
        model.generate(TEXT, loudness=0.0)


def test_generate_takes_markup_breath_and_loudness(model):
    wav = model.generate("One. [pause 1s] Two.", seed=3, markup=True, breath=True, loudness=-24.0, **SHORT)
    assert torch.equal(wav, speak(model, "One. [pause 1s] Two.", 280, markup=True, breath=True, loudness=-24.0).wav)
