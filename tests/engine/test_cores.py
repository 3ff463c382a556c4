"""Two cores of a CPU: one renders while the other draws tokens, without a change of the results."""

import threading
from functools import partial

import pytest
import torch
from threads import in_threads, soon
from token_runs import CPU, engine_of

from chatterbox_opt import Cancelled, OptimizedChatterboxTTS
from chatterbox_opt.engine.workers import Workers
from chatterbox_opt.options import EngineOptions

TEXTS = ["Hello there.", "Good morning to you all.", "No.", "Well, well, that is a long one."]
SHORT = dict(max_new_tokens=50)


@pytest.fixture(scope="module")
def tiny():
    return OptimizedChatterboxTTS.from_random("cpu", size="tiny", seed=0)


@pytest.fixture
def model(tiny, monkeypatch):
    """A model with two cores, whatever this machine has."""
    engine = tiny.pipeline.engine
    workers = Workers(CPU, 2)
    monkeypatch.setattr(engine.renderer, "workers", workers)
    monkeypatch.setattr(engine.scheduler, "cores", 2)
    yield tiny
    assert soon(lambda: not engine.renderer.running), "what nobody waits for any more is forgotten"
    workers.close()


def test_tokens_are_drawn_while_sound_is_made(model, tiny, monkeypatch):
    engine, beside = model.pipeline.engine, []
    decode = engine.decode
    monkeypatch.setattr(engine, "decode", lambda: (beside.append(len(engine.renderer.running)), decode()))
    with pytest.MonkeyPatch.context() as one_core:
        one_core.setattr(engine.scheduler, "cores", 1)
        alone = [model.generate(text, seed=i, **SHORT) for i, text in enumerate(TEXTS)]
        streamed = [torch.cat(list(model.generate_stream(text, seed=i, **SHORT)), 1) for i, text in enumerate(TEXTS)]
    assert set(beside) == {0}
    whole, streams = {}, {}

    def speak(i):
        for k in range(i, i + 2):  # each asks for another text while the others speak
            whole[k % 4] = model.generate(TEXTS[k % 4], seed=k % 4, **SHORT)

    def stream(i):
        streams[i] = torch.cat(list(model.generate_stream(TEXTS[i], seed=i, **SHORT)), 1)

    in_threads(*(partial(work, i) for work in (speak, stream) for i in range(4)))
    for i in range(4):
        assert (whole[i] - alone[i]).abs().max() < 1e-4
        assert (streams[i] - streamed[i]).abs().max() < 1e-4
    assert max(beside) == 1, "one core is left to it"
    assert 0 in beside


def test_a_rendering_on_another_core_does_not_wait_for_the_engine_between_its_steps(model, monkeypatch):
    renderer, here, starts, steps = model.pipeline.engine.renderer, threading.get_ident(), [], []
    start, advance = renderer.workers.start, renderer.mel.advance
    monkeypatch.setattr(renderer.workers, "start", lambda *how: (starts.append(how), start(*how))[1])
    monkeypatch.setattr(renderer.mel, "advance", lambda s: (steps.append(threading.current_thread()), advance(s)))
    model.generate_batch(TEXTS, seeds=range(4), **SHORT)
    beside = [thread for thread in steps if thread.ident != here]
    assert len(beside) >= 10
    assert 0 < len(starts) <= len(beside) / 2


def test_cancelling_a_rendering_leaves_other_calls_alone(model):
    engine = model.pipeline.engine
    wanted = model.generate(TEXTS[1], seed=1, max_new_tokens=300)
    gone = model.submit(TEXTS[0], seed=0, first_chunk=0.4, n_cfm_timesteps=100, max_new_tokens=300)
    got = []
    other = threading.Thread(target=lambda: got.append(model.generate(TEXTS[1], seed=1, max_new_tokens=300)))
    other.start()
    assert soon(lambda: engine.renderer.begun)
    gone.cancel()
    with pytest.raises(Cancelled):
        list(gone)
    other.join(120)
    assert (got[0] - wanted).abs().max() < 1e-4
    assert soon(lambda: not (engine.calls or engine.renderer.begun or engine.tokens.live))


def test_an_error_on_another_core_ends_its_own_call(model, monkeypatch):
    engine = model.pipeline.engine
    wanted = model.generate(TEXTS[1], seed=1, **SHORT)
    vocode = engine.renderer.vocode
    monkeypatch.setattr(engine.renderer, "vocode", lambda sounds, mels: fail_for_short(vocode, sounds, mels))

    def short():
        with pytest.raises(OSError, match="no sound"):
            model.generate(TEXTS[2], seed=2, max_new_tokens=5)

    _, _, *got = in_threads(short, short, *[lambda: model.generate(TEXTS[1], seed=1, **SHORT)] * 2)
    assert all((wave - wanted).abs().max() < 1e-4 for wave in got)


def fail_for_short(vocode, sounds, mels):
    if any(mel is not None and mel.shape[1] <= 10 for mel in mels):
        raise OSError("no sound")
    return vocode(sounds, mels)


def test_half_precision_keeps_its_number_of_threads(llama):
    assert engine_of(llama).tokens.same_on_any_cores
    half = OptimizedChatterboxTTS.from_random("cpu", size="tiny", engine=EngineOptions(dtype="bfloat16"))
    assert not half.pipeline.engine.tokens.same_on_any_cores
