"""generate_stream() of every family: the speech of generate(), sooner, in chunks without clicks."""

import threading
import weakref

import pytest
import torch

from chatterbox_opt import (
    Cancelled,
    EngineOptions,
    NoSpeech,
    OptimizedChatterboxMultilingualTTS,
    OptimizedChatterboxTTS,
    OptimizedChatterboxTurboTTS,
)
from chatterbox_opt.calls import GenerateOptions
from chatterbox_opt.engine import rendering
from chatterbox_opt.engine.request import Utterance

LONG = "First comes a sentence of some length. Then there is another one, as long as the first. And then a third."


@pytest.fixture(scope="module")
def model():
    return OptimizedChatterboxTTS.from_random(size="tiny", seed=0)


def load(family: str):
    if family == "mtl":
        return OptimizedChatterboxMultilingualTTS.from_random(size="tiny"), dict(language_id="fr")
    if family == "turbo":
        return OptimizedChatterboxTurboTTS.from_random(size="tiny"), {}
    return OptimizedChatterboxTTS.from_random(size="tiny"), {}


@pytest.mark.kernels
@pytest.mark.parametrize("family", ["tts", "mtl", "turbo"])
def test_as_long_as_what_generate_says(family):
    model, how = load(family)
    how |= dict(seed=3, max_new_tokens=70)
    wanted = model.generate("Hello there.", **how)
    chunks = list(model.generate_stream("Hello there.", first_chunk=0.5, **how))
    assert len(chunks) > 2
    assert all(c.ndim == 2 and len(c) == 1 and c.dtype == torch.float32 and c.device.type == "cpu" for c in chunks)
    got = torch.cat(chunks, 1)
    assert got.shape == wanted.shape
    assert got.isfinite().all()
    got += 0  # an ordinary tensor, not one of inference mode
    again = torch.cat(list(model.generate_stream("Hello there.", first_chunk=0.5, **how)), 1)
    assert torch.equal(again, got), "the same text, voice and seed give the same audio"


@pytest.mark.kernels
def test_its_tokens_are_generates(model, monkeypatch):
    jobs, row = [], model.pipeline.mel.row
    monkeypatch.setattr(model.pipeline.mel, "row", lambda job: (jobs.append(job), row(job))[1])
    for seed in (3, None):
        torch.manual_seed(8)
        wanted = model.speak(model.jobs(["Hello there."], seeds=seed, max_new_tokens=70))[0].tokens[0].tolist()
        after = torch.rand(2)
        jobs.clear()
        torch.manual_seed(8)
        stream = model.generate_stream("Hello there.", seed=seed, max_new_tokens=70)
        list(stream)
        assert len(jobs) > 1
        before, _ = jobs[-1].said
        assert before.tolist() + jobs[-1].tokens.tolist() == wanted
        assert [t.tolist() for t in stream.tokens] == [wanted]
        assert stream.stops == ["limit"]
        assert seed is None or torch.equal(torch.rand(2), after)


def test_pieces_of_a_long_text():
    model = OptimizedChatterboxTTS.from_random(size="tiny", enable_watermark=False)
    how = dict(seed=3, max_new_tokens=40, max_chars=45)
    wanted = model.generate(LONG, **how)
    got = torch.cat(list(model.generate_stream(LONG, **how)), 1)
    assert got.shape == wanted.shape
    silent = (wanted == 0) & (got == 0)
    assert silent.sum() >= 2 * 0.15 * model.sr, "the pauses stand at the same place"


def test_what_was_told_is_forgotten(model, monkeypatch):
    """Noise and mels of finished pieces would take gigabytes after an hour."""
    made, alive, usual = [], [], rendering.Sound

    def remember(*args):
        made.append(weakref.ref(sound := usual(*args)))
        alive.append(sum(ref() is not None for ref in made))
        return sound

    monkeypatch.setattr(rendering, "Sound", remember)
    list(model.generate_stream("This is a sentence of some words. " * 20, seed=1, max_new_tokens=3, max_chars=40))
    assert len(made) == 20
    assert max(alive) <= 2


def test_the_first_chunk_comes_before_the_last_token(model, monkeypatch):
    """Counted, not timed: the steps of T3 before the first sound."""
    steps, at = [], []
    run = model.pipeline.tokens.step.run
    monkeypatch.setattr(model.pipeline.tokens.step, "run", lambda: (steps.append(1), run())[1])
    (job,) = model.jobs(["Hello there."], seeds=1, max_new_tokens=100)
    stream = model.pipeline.stream(job, first_chunk=1.0, options=GenerateOptions(max_chars=None))
    stream.notify(lambda: at.append(len(steps)))
    sizes = [wave.shape[1] / model.sr for wave in stream]
    assert at[0] < 40
    assert at[-1] >= 99
    assert sizes[0] == 1.0


def test_other_speech_while_a_stream_waits(model):
    """No lock is held while a listener pauses."""
    wanted = model.generate("No.", seed=1, max_new_tokens=6)
    for _ in model.generate_stream("Hello there.", seed=1, max_new_tokens=60, first_chunk=0.5):
        assert torch.equal(model.generate("No.", seed=1, max_new_tokens=6), wanted)


@pytest.mark.kernels
def test_streams_side_by_side(model):
    texts = ["Hello there.", "Good morning.", "No."]
    alone = [torch.cat(list(model.generate_stream(t, seed=i, max_new_tokens=60)), 1) for i, t in enumerate(texts)]
    streams = [model.generate_stream(t, seed=i, max_new_tokens=60) for i, t in enumerate(texts)]
    heard = [[next(s)] for s in streams]
    for parts, stream in zip(heard, streams):
        parts += stream
    assert all(torch.equal(torch.cat(parts, 1), wanted) for parts, wanted in zip(heard, alone))


@pytest.mark.kernels
def test_what_is_submitted_is_generates(model):
    """Without first_chunk the speech comes as one chunk; with it, in the chunks of a stream."""
    how = dict(seed=3, max_new_tokens=40)
    (whole,) = model.submit("Hello there.", **how)
    assert torch.equal(whole, model.generate("Hello there.", **how))
    chunks = list(model.generate_stream("Hello there.", first_chunk=0.5, **how))
    submitted = list(model.submit("Hello there.", first_chunk=0.5, **how))
    assert len(chunks) > 1
    assert all(torch.equal(a, b) for a, b in zip(chunks, submitted, strict=True))


def test_cancel(model):
    stop = threading.Event()
    chunks = model.generate_stream(LONG, seed=1, max_new_tokens=900, cancel=stop)
    next(chunks)
    stop.set()
    with pytest.raises(Cancelled):
        list(chunks)
    assert model.generate("No.", seed=1, max_new_tokens=6).isfinite().all()


def test_wrong_arguments_are_told_at_once(model):
    for bad in (0, -1, 100, "1", True):
        with pytest.raises(ValueError, match="first_chunk"):
            model.generate_stream("Hello there.", first_chunk=bad)
    with pytest.raises(ValueError, match="n_cfm_timesteps"):
        model.generate_stream("Hello there.", n_cfm_timesteps=0)
    with pytest.raises(TypeError, match="cfg_wait"):
        model.generate_stream("Hello there.", cfg_wait=1)
    with pytest.raises(ValueError, match="max_chars"):
        model.generate_stream("Hello there.", max_chars=5)
    small = OptimizedChatterboxTTS.from_random(size="tiny", engine=EngineOptions(cache_len=64))
    with pytest.raises(ValueError, match="cache_len"):
        small.generate_stream("Hello there.")


def test_arguments_are_generates(tmp_path):
    import soundfile

    model = OptimizedChatterboxTurboTTS.from_random(size="tiny")
    soundfile.write(tmp_path / "voice.wav", 0.1 * torch.randn(24_000 * 6).numpy(), 24_000)
    how = dict(audio_prompt_path=tmp_path / "voice.wav", norm_loudness=False, seed=1, max_new_tokens=20)
    before = model.conds
    got = torch.cat(list(model.generate_stream("Hello there.", **how)), 1)
    assert model.conds is not before, "as generate(), it keeps the voice"
    assert got.shape == model.generate("Hello there.", **how).shape
    seen = []
    list(model.generate_stream(LONG, progress=lambda *p: seen.append(p), seed=1, max_chars=45, max_new_tokens=20,
                               audio_prompt_path=""))
    assert seen == sorted(seen)
    assert seen[-1] == (60, 60)


def test_no_sound_at_all(model, monkeypatch):
    monkeypatch.setattr(Utterance, "audible", lambda self, until=None: [])
    with pytest.raises(NoSpeech, match="Hello there"):
        list(model.generate_stream("Hello there.", max_new_tokens=5))


def test_chunks_carry_the_watermark():
    """The mark is detected in the joined chunks, and in parts of them."""
    model = OptimizedChatterboxTTS.from_mini()
    chunks = list(model.generate_stream(LONG, seed=2))
    speech = torch.cat(chunks, 1)[0].numpy()
    sure = model.watermarker.get_watermark(speech, model.sr, round=False)
    assert len(chunks) > 3
    assert sure > 0.9
    assert model.watermarker.get_watermark(speech[len(speech) // 3 :], model.sr, round=False) > 0.9
    listener, model.watermarker = model.watermarker, None
    plain = torch.cat(list(model.generate_stream(LONG, seed=2)), 1)[0].numpy()
    assert listener.get_watermark(plain, model.sr, round=False) < 0.1
    at_once = listener.apply_watermark(plain, model.sr)
    assert (speech - plain).std() == pytest.approx((at_once - plain).std(), rel=0.2), "no louder than on the whole"
    assert abs(speech - plain).max() < 1.5 * abs(at_once - plain).max(), "nor at the seams"
