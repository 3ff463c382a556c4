"""The quality metrics of the benchmarks: words, logits, spectra, likeness of voices."""


import metrics
import pytest
import torch
import workload


@pytest.mark.parametrize(
    ("said", "heard", "errors"),
    [
        ("The cat sat.", "the cat sat", 0),
        ("The cat sat.", "the cat", 1),
        ("The cat sat.", "the big cat sat", 1),
        ("The cat sat.", "a cat sits", 2),
        ("The cat sat.", "", 3),
        ("I don't know.", "I dont know", 0),
        ("Bring 3 eggs.", "bring three eggs", 0),
        ("one two three four", "four three two one", 4),
    ],
)
def test_word_errors(said, heard, errors):
    assert metrics.word_errors(said, heard) == (errors, len(metrics.words(said)))


def test_word_error_rate_weighs_words_not_sentences():
    assert metrics.word_error_rate([("a b c d e f g h i", "a b c d e f g h i"), ("x", "y")]) == pytest.approx(0.1)


def test_logits_are_compared_without_their_offset():
    g = torch.Generator().manual_seed(0)
    reference = 5 * torch.randn(20, 6563, generator=g)
    same = metrics.compare_logits(reference, reference + 3)
    assert same["rms_error"] < 1e-5
    assert same["kl"] < 1e-6
    assert same["argmax_agreement"] == 1
    other = metrics.compare_logits(reference, 5 * torch.randn(20, 6563, generator=g))
    assert other["argmax_agreement"] < 0.2
    assert other["kl"] > 1


def test_mel_distance_in_decibels():
    mel = torch.randn(80, 40, generator=torch.Generator().manual_seed(0))
    assert metrics.mel_distance(mel, 1.1 * mel)["snr_db"] == pytest.approx(20, abs=0.01)
    wave = torch.randn(9600, generator=torch.Generator().manual_seed(0))
    assert metrics.spectral_distance(wave, wave) == 0
    assert metrics.spectral_distance(wave, 0.5 * wave) == pytest.approx(6, abs=0.3)


@pytest.fixture(scope="module")
def heard():
    missing = metrics.Listener.missing() or metrics.Teacher.missing()
    if missing:
        pytest.skip(missing)
    return metrics.Listener(), metrics.Teacher()


def test_the_listener_hears_what_is_said(heard):
    listener, teacher = heard
    texts = metrics.sentences()[:3]
    pairs = [(t, listener.hear(teacher.say(t), teacher.rate)) for t in texts]
    assert metrics.word_error_rate(pairs) < 0.15, pairs
    noise = 0.1 * torch.randn(3 * 24_000, generator=torch.Generator().manual_seed(0))
    assert metrics.word_error_rate([(texts[0], listener.hear(noise, 24_000))]) > 0.85


def test_similarity_of_real_speech(heard, tmp_path):
    """With an untrained encoder this shows only that sample rates count and recordings differ."""
    _, teacher = heard
    model = workload.load(workload.weights("random", "tts", "tiny", tmp_path), "cpu", enable_watermark=False)
    wav, other = (teacher.say(t) for t in metrics.sentences()[:2])
    first = metrics.speaker_embedding(model, wav, teacher.rate)
    finer = metrics.speaker_embedding(model, metrics._at(wav, teacher.rate, 48_000), 48_000)
    assert metrics.similarity(first, first) == pytest.approx(1, abs=1e-5)
    assert metrics.similarity(first, finer) > 0.99
    assert metrics.similarity(first, metrics.speaker_embedding(model, wav, 2 * teacher.rate)) < 0.99
    assert metrics.similarity(first, metrics.speaker_embedding(model, other, teacher.rate)) < 0.99
