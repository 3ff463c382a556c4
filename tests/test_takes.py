"""Several takes of a text, of which the best is kept, and failed pieces that are drawn again."""

from __future__ import annotations

import threading

import pytest
import torch

from chatterbox_opt import Cancelled, EngineOptions, OptimizedChatterboxTTS
from chatterbox_opt.engine import endings, rendering
from chatterbox_opt.engine.seeds import piece_seed
from chatterbox_opt.mtl_tts import OptimizedChatterboxMultilingualTTS
from chatterbox_opt.takes import TakeSelection
from chatterbox_opt.tts_turbo import OptimizedChatterboxTurboTTS
from chatterbox_opt.whole_speech import WholeSpeech

TWO = "The first piece is here. The second piece is here too."  # at 30 characters each
SHORT = dict(max_new_tokens=12)


@pytest.fixture(scope="module")
def tiny():
    return OptimizedChatterboxTTS.from_random(engine=EngineOptions.exact(runaway_guard=True), enable_watermark=False)


def speak(model, text, seed, **how):
    (speech,) = model.speak(model.jobs([text], seeds=seed, **SHORT), **how)
    return speech


def by_seed(*wanted):
    """Returns a score that prefers the wanted seeds, in their order."""
    return lambda take: -wanted.index(take.seed) if take.seed in wanted else -99.0


@pytest.mark.parametrize("door", [OptimizedChatterboxTTS, OptimizedChatterboxMultilingualTTS,
                                  OptimizedChatterboxTurboTTS])
@pytest.mark.parametrize("best", [7, 9])
def test_a_take_is_what_a_call_with_its_seed_alone_gives(door, best):
    model = door.from_random(engine=EngineOptions.exact(), enable_watermark=False)
    got = speak(model, TWO, 7, max_chars=30, takes=3, score=by_seed(best))
    wanted = speak(model, TWO, best, max_chars=30)
    assert len(got.tokens) == 2
    assert [c.seed for c in got.choices] == [best, best]
    assert all(map(torch.equal, got.tokens, wanted.tokens))
    assert torch.allclose(got.wav, wanted.wav, atol=1e-6)


def test_a_speech_counts_once_however_many_takes_it_has(tiny):
    for how, sounds in (({}, 1), (dict(takes=2), 1), (dict(takes=2, score=lambda take: 0.0), 1)):
        before = tiny.stats()
        speak(tiny, TWO, 1, max_chars=30, **how)
        after = tiny.stats()
        assert after["finished"] == before["finished"] + 1
        assert after["first_sound"]["count"] == before["first_sound"]["count"] + sounds
        assert after["real_time_factor"]["count"] == before["real_time_factor"]["count"] + sounds


def test_takes_chosen_by_their_sound_are_joined_beside_the_calls_of_others(monkeypatch):
    """On a core of its own, if it is long."""
    mini, threads, finish = OptimizedChatterboxTTS.from_mini(enable_watermark=False), [], WholeSpeech.finish
    text, how = "The last train had left an hour ago. ", dict(seed=3, takes=2, score=lambda take: 0.0)

    def told(sink):
        threads.append(threading.current_thread().name)
        finish(sink)

    monkeypatch.setattr(mini.pipeline.engine.renderer.workers, "count", 2)
    monkeypatch.setattr(mini.pipeline.engine.scheduler, "cores", 2)
    monkeypatch.setattr(rendering, "BRIEF", 5.0)
    monkeypatch.setattr(WholeSpeech, "finish", told)
    other = mini.submit(text * 60, seed=1, first_chunk=0.5)
    next(other)
    assert mini.generate(text * 4, **how).shape[1] > 5 * mini.sr
    mini.generate("No.", **how)
    assert not other.done, "they were not alone"
    mini.close()
    assert [name.startswith("chatterbox-render") for name in threads] == [True, False]


def test_each_piece_keeps_its_own_best(tiny):
    def score(take):
        return float(take.seed == (3 if take.text.startswith("The first") else 1))

    got = speak(tiny, TWO, 1, max_chars=30, takes=3, score=score)
    assert [c.seed for c in got.choices] == [3, 1]
    assert [c.seeds for c in got.choices] == [[1, 2, 3]] * 2
    assert [c.scores for c in got.choices] == [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    assert torch.equal(got.tokens[0], speak(tiny, TWO, 3, max_chars=30).tokens[0])
    assert torch.equal(got.tokens[1], speak(tiny, TWO, 1, max_chars=30).tokens[1])


def test_the_first_of_equals_is_kept(tiny):
    assert speak(tiny, "Hello.", 5, takes=3, score=lambda take: 1.0).choices[0].seed == 5


def test_a_score_gets_the_take(tiny):
    heard = []
    speak(tiny, "Hello.", 5, takes=2, score=lambda take: heard.append(take) or 0.0)
    assert [t.seed for t in heard] == [5, 6]
    for take in heard:
        single = speak(tiny, "Hello.", take.seed)
        assert torch.allclose(take.wav, single.wav, atol=1e-6)
        assert torch.equal(take.tokens, single.tokens[0])
        assert (take.text, take.read, take.stopped, take.sr) == ("Hello.", "Hello.", single.stops[0], 24_000)
        assert take.voice.t3.speaker_emb.shape == (1, 256)


def test_a_score_gets_the_text_that_is_read(tiny):
    heard = []
    jobs = tiny.jobs(["Use SQL."], seeds=1, pronounce={"SQL": "sequel"}, **SHORT)
    tiny.speak(jobs, takes=2, score=lambda take: heard.append(take) or 0.0)
    assert {(t.text, t.read) for t in heard} == {("Use SQL.", "Use sequel.")}


def test_only_the_best_is_rendered_where_tokens_are_enough(tiny, monkeypatch):
    """The score by length, which is the default."""
    rendered, decode = [], tiny.pipeline.wav.decode
    def counted(mels, spectra):
        rendered.extend(mels)
        return decode(mels, spectra)

    monkeypatch.setattr(tiny.pipeline.wav, "decode", counted)
    got = speak(tiny, "Hello.", 5, takes=4)
    assert len(rendered) == 1
    assert torch.allclose(got.wav, speak(tiny, "Hello.", got.choices[0].seed).wav, atol=1e-6)
    rendered.clear()
    speak(tiny, "Hello.", 5, takes=4, score=lambda take: 0.0)
    assert len(rendered) == 4


def test_marks_and_pieces_are_those_of_a_call_without_takes(tiny):
    jobs = [tiny.jobs(["One. [pause 0.5s] Use SQL."], seeds=seed, markup=True, pronounce={"SQL": "sequel"}, **SHORT)
            for seed in (1, 2)]
    (got,), (wanted,) = tiny.speak(jobs[0], takes=2, score=by_seed(2)), tiny.speak(jobs[1])
    assert torch.allclose(got.wav, wanted.wav, atol=1e-6)
    assert [(p.text, p.chars, p.samples) for p in got.pieces] == [(p.text, p.chars, p.samples) for p in wanted.pieces]
    assert [p.text for p in got.pieces] == ["One.", "Use SQL."]


def test_texts_of_a_batch_have_their_own_takes(tiny):
    jobs = tiny.jobs(["One.", "Two two."], seeds=[1, 20], **SHORT)
    both = tiny.speak(jobs, takes=2, score=by_seed(2, 20))
    assert [s.choices[0].seed for s in both] == [2, 20]
    assert torch.equal(both[0].tokens[0], speak(tiny, "One.", 2).tokens[0])
    assert torch.equal(both[1].tokens[0], speak(tiny, "Two two.", 20).tokens[0])


def test_without_a_seed_the_choice_tells_the_one_that_repeats_it(tiny):
    got = speak(tiny, "Hello.", None, takes=2)
    assert torch.equal(got.tokens[0], speak(tiny, "Hello.", got.choices[0].seed).tokens[0])


def test_the_watermark_is_applied_once():
    """On the returned whole; scores get takes without it."""
    model = OptimizedChatterboxTTS.from_random(engine=EngineOptions.exact())
    waves = []
    got = speak(model, "Hello.", 5, takes=2, score=lambda take: waves.append(take.wav) or float(take.seed == 6))
    assert torch.allclose(got.wav, speak(model, "Hello.", 6).wav, atol=1e-5)
    assert not torch.allclose(got.wav, waves[1], atol=1e-5)


# ---- retries -------------------------------------------------------------------------------------


@pytest.fixture
def runaway(monkeypatch):
    """`runaway(index, seeds)`: with these seeds the text's piece of that index counts as stopped by the guard."""
    call, bad = TakeSelection._call, set()

    def forced(self, utterances, sink=None, progress=None):
        call(self, utterances, sink, progress)
        for u in utterances:
            if sink is None and u.noise.cpu.initial_seed() in bad:
                u.stopped = "guard"

    monkeypatch.setattr(TakeSelection, "_call", forced)
    return lambda index, seeds: bad.update(piece_seed(seed, index) for seed in seeds)


def test_a_piece_that_ran_away_is_drawn_again(tiny, runaway, caplog):
    runaway(1, [7, 8])
    got = speak(tiny, TWO, 7, max_chars=30, retries=3)
    assert [(c.seed, c.tries) for c in got.choices] == [(7, 1), (9, 3)]
    assert got.choices[1].stops[:2] == ["guard", "guard"]
    assert "guard" not in got.stops
    assert torch.equal(got.tokens[0], speak(tiny, TWO, 7, max_chars=30).tokens[0])
    assert torch.equal(got.tokens[1], speak(tiny, TWO, 9, max_chars=30).tokens[1])
    assert sum("drawn again" in record.message for record in caplog.records) == 2
    assert "ran away" not in caplog.text


def test_the_last_retry_is_kept_with_a_warning(tiny, monkeypatch, caplog):
    monkeypatch.setattr(endings, "ran_away", lambda tokens, text_tokens: len(tokens) > 5)
    got = speak(tiny, "Hello.", 7, retries=1)
    assert got.stops == ["guard"]
    assert got.choices[0].stops == ["guard", "guard"]
    assert got.choices[0].tries == 2
    assert "ran away" in caplog.text
    assert got.wav.numel()


def test_failed_takes_lose_whatever_their_score(tiny, runaway):
    runaway(0, [7])
    got = speak(tiny, "Hello.", 7, takes=3, score=by_seed(7, 9, 8))
    assert got.choices[0].seed == 9
    assert got.choices[0].scores[0] is None


def test_without_failures_nothing_is_drawn_again(tiny):
    got = speak(tiny, "Hello.", 7, retries=5)
    assert got.choices[0].seeds == [7]
    assert torch.equal(got.wav, speak(tiny, "Hello.", 7).wav)


# ---- errors, cancelling -------------------------------------------------------------------------------------


def test_without_the_options_nothing_changes(tiny):
    plain, same = speak(tiny, "Hello.", 7), speak(tiny, "Hello.", 7, takes=1, retries=0)
    assert plain.choices == same.choices == []
    assert torch.equal(plain.wav, same.wav)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (dict(takes=True), "takes=True"),
        (dict(takes=65), "from 1 to 64"),
        (dict(takes=2, score="words"), "score is str"),
        (dict(takes=2, score=lambda take: float("nan")), "score gave nan"),
    ],
)
def test_errors(tiny, how, message):
    with pytest.raises(ValueError, match=message):
        speak(tiny, "Hello.", 1, **how)


def test_an_error_of_a_score_reaches_the_caller(tiny):
    def broken(take):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        speak(tiny, "Hello.", 1, takes=2, score=broken)
    assert speak(tiny, "Hello.", 1).wav.numel()
    assert tiny.stats()["calls"] == 0


def test_cancel_and_progress(tiny, runaway):
    runaway(0, [7, 8])
    seen = []
    speak(tiny, "Hello.", 7, progress=lambda *counts: seen.append(counts), takes=2, retries=1)
    assert seen == sorted(seen)
    assert all(done <= most for done, most in seen)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        speak(tiny, "Hello.", 7, cancel=stop, takes=2)


@pytest.mark.parametrize(("door", "where"), [(OptimizedChatterboxTTS, ()), (OptimizedChatterboxTurboTTS, ()),
                                             (OptimizedChatterboxMultilingualTTS, ("en",))])
def test_takes_of_every_front_door(door, where):
    model = door.from_random(enable_watermark=False)
    how = dict(max_new_tokens=8, pronounce={"SQL": "sequel"})
    got = model.generate("Use SQL.", *where, seed=1, takes=2, score=by_seed(2), retries=1, **how)
    wanted = model.generate("Use sequel.", *where, seed=2, max_new_tokens=8)
    assert got.shape == wanted.shape
    batch = dict(language_ids=where[0]) if where else {}
    (same,) = model.generate_batch(["Use SQL."], seeds=1, takes=2, score=by_seed(2), **batch, **how)
    assert same.shape == wanted.shape
    language = dict(language_id=where[0]) if where else {}
    chunks = list(model.generate_stream("Use SQL.", seed=2, **language, **how))
    assert torch.cat(chunks, 1).shape == wanted.shape
