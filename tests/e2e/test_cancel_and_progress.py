"""Ends a call early, and tells how far it is."""

import threading
import time

import pytest

from chatterbox_opt import Cancelled, OptimizedChatterboxTTS


@pytest.fixture(scope="module")
def model():
    return OptimizedChatterboxTTS.from_random(size="tiny", seed=0)


def test_cancel(model):
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        model.generate("Hello there.", cancel=stop)
    late = threading.Event()
    timer = threading.Timer(0.3, late.set)
    timer.start()
    with pytest.raises(Cancelled):
        model.generate(" ".join(["And on it goes, without an end."] * 200), cancel=late, max_new_tokens=4000)
    timer.cancel()
    assert model.generate("Hello.", seed=1, max_new_tokens=4).shape[1] > 0


def test_cancel_ends_the_rendering(model, monkeypatch):
    """Between the steps of the flow, which take half a minute on a CPU."""
    stop, heard = threading.Event(), []

    def step(done: int, ceiling: int) -> None:
        heard.append((done, ceiling))

    mel, flow = model.pipeline.engine.renderer.mel, []
    advance = mel.advance

    def second(solve) -> None:
        flow.append(0)
        if len(flow) == 2:
            stop.set()
        advance(solve)

    monkeypatch.setattr(mel, "advance", second)
    with pytest.raises(Cancelled):
        model.generate("Hello there.", seed=1, max_new_tokens=6, cancel=stop, progress=step)
    assert len(flow) == 2
    assert heard[-1][0] <= heard[-1][1] == 6


@pytest.mark.parametrize("sentences", [20, 200])  # with or without a free slot beside it
def test_cancel_while_another_thread_speaks(model, sentences):
    """A waiting caller returns at once when cancelled, although another thread drives the engine."""
    stop, end, outcome = threading.Event(), threading.Event(), []
    text = " ".join(["And on it goes, without an end."] * sentences)

    def speak() -> None:
        try:
            model.generate(text, cancel=end, max_new_tokens=4000)
        except Cancelled as error:
            outcome.append(error)

    other = threading.Thread(target=speak)
    other.start()
    while not model.stats()["live"]:
        time.sleep(0.001)
    timer = threading.Timer(0.3, stop.set)
    timer.start()
    with pytest.raises(Cancelled):
        model.generate("Hello.", cancel=stop, max_new_tokens=4000)
    assert other.is_alive()
    assert not outcome
    end.set()
    other.join()
    assert len(outcome) == 1
    assert model.generate("Hello.", seed=1, max_new_tokens=4).shape[1] > 0


def test_progress_bar_is_on_stderr_only(model, capsys):
    model.generate("Hello there.", seed=1, max_new_tokens=6, verbose=True)
    out = capsys.readouterr()
    assert out.out == ""
    assert "speech tokens: 100%" in out.err
    assert "6/6" in out.err, "what was drawn is all of it in the end"
    assert "/1000" not in out.err


def test_a_progress_bar_is_not_full_if_the_call_fails(model, capsys):
    def fails(*_):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        model.generate("Hello there.", seed=1, max_new_tokens=6, verbose=True, progress=fails)
    assert "speech tokens: " in (err := capsys.readouterr().err)
    assert "%" not in err


def test_a_streams_bar_comes_with_its_first_token(model, capsys):
    stream = model.generate_stream("Hello there.", seed=1, max_new_tokens=6, verbose=True)
    assert capsys.readouterr().err == ""
    assert list(stream)
    assert "speech tokens: 100%" in capsys.readouterr().err


def test_the_bar_of_a_cancelled_stream_is_not_full(model, capsys):
    stream = model.generate_stream("Hello there. " * 20, seed=1, first_chunk=0.2, verbose=True)
    next(stream)
    stream.close()
    assert "speech tokens: " in (err := capsys.readouterr().err)
    assert "%" not in err
