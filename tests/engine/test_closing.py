"""Models and streams that are closed, or lose their device, while others are in the middle of something."""

import threading
import time

import pytest
from scripted import one_millisecond, scripted_engine, scripted_utterance, stream_of
from threads import soon

from chatterbox_opt import OptimizedChatterboxTTS
from chatterbox_opt.engine import driver, rendering
from chatterbox_opt.engine.request import Call

TEXT = "The last train had left an hour ago. " * 6
TOKENS = list(range(1, 101))


@pytest.fixture
def on_two_cores(monkeypatch):
    """A small voice whose engine renders on threads of its own, whatever this machine has."""
    model = OptimizedChatterboxTTS.from_mini(enable_watermark=False)
    monkeypatch.setattr(model.pipeline.engine.renderer.workers, "count", 2)
    monkeypatch.setattr(model.pipeline.engine.scheduler, "cores", 2)
    yield model
    model.close()


def test_a_call_that_comes_while_the_model_is_closed_is_refused():
    """Checked before, and submitted when the calls of others have been ended."""
    engine = scripted_engine(work=one_millisecond)
    checked, ending, told = threading.Event(), threading.Event(), []
    check, clear = engine.check, engine.tokens.clear

    def slow_check(call) -> None:
        check(call)
        checked.set()
        assert ending.wait(20)

    def slow_clear() -> None:
        clear()
        if not ending.is_set():
            ending.set()
            assert soon(lambda: engine.inbox)
            time.sleep(0.1)  # its caller waits for the place by then

    def speak() -> None:
        with pytest.raises(RuntimeError, match="closed"):
            engine.run(Call([scripted_utterance(TOKENS)]))
        told.append(True)

    engine.check, engine.tokens.clear = slow_check, slow_clear
    threading.Thread(target=speak, daemon=True).start()
    assert checked.wait(20)
    engine.close()
    assert soon(lambda: told, 5)


def test_closing_waits_so_long_for_a_step_and_no_longer(monkeypatch):
    """A callback may never return, and a process that ends closes its models."""
    monkeypatch.setattr(driver, "LAST_STEP", 0.2)
    inside, go = threading.Event(), threading.Event()

    def work() -> None:
        inside.set()
        go.wait(20)

    engine = scripted_engine(work=work)
    stream = stream_of(engine, TOKENS).begin()
    assert inside.wait(20)
    closing = threading.Thread(target=engine.close, daemon=True)
    closing.start()
    closing.join(5)
    assert not closing.is_alive()
    assert not stream.done
    go.set()
    assert soon(lambda: stream.done), "after its step it ends all the same"


def test_nothing_comes_after_a_stream_is_closed(on_two_cores, monkeypatch):
    """Though its speech is just being marked, on another core."""
    monkeypatch.setattr(rendering, "BRIEF", 0.0)
    (marking, go, marked), told = (threading.Event() for _ in range(3)), []

    class Mark:
        def apply_watermark(self, wav, sample_rate):
            marking.set()
            assert go.wait(20)
            marked.set()
            return wav

    other = on_two_cores.submit(TEXT * 4, seed=1, first_chunk=0.5)  # so that the speech is not alone
    next(other)
    on_two_cores.watermarker = Mark()
    stream = on_two_cores.submit("Hello there.", seed=2)
    stream.notify(lambda: told.append(stream.done))
    assert marking.wait(20)
    stream.close()
    assert told == [True]
    go.set()
    assert marked.wait(20)
    other.close()
    on_two_cores.close()  # waits for that core
    assert told == [True]
    assert not stream._queue.chunks


@pytest.mark.parametrize("where", ["progress", "mark"])
def test_a_model_may_be_closed_by_whoever_works_for_it(on_two_cores, where, monkeypatch):
    """In a callback of a step, which waits for no rendering of another thread; and on such a thread."""
    monkeypatch.setattr(rendering, "BRIEF", 0.0)
    before = {*threading.enumerate()}  # another test's model may have threads
    engine, rendered, errors = on_two_cores.pipeline.engine, threading.Event(), []
    advance, closed = engine.renderer.mel.advance, []

    def slowly(solve) -> None:
        if where == "progress" and threading.current_thread().name.startswith("chatterbox-render"):
            assert rendered.wait(20)
        advance(solve)

    def close() -> None:
        on_two_cores.close()
        closed.append(threading.current_thread().name)
        rendered.set()

    def report(drawn: int, most: int) -> None:
        if where == "progress" and engine.renderer.running:
            close()

    class Mark:
        def apply_watermark(self, wav, sample_rate):
            close()
            return wav

    def speak() -> None:
        try:
            on_two_cores.generate_batch([TEXT, "No.", "Yes."], seeds=1, progress=report)
        except RuntimeError as error:
            errors.append(error)

    monkeypatch.setattr(engine.renderer.mel, "advance", slowly)
    if where == "mark":
        other = on_two_cores.submit(TEXT * 4, seed=1, first_chunk=0.5)  # so that the batch is not alone
        next(other)
        on_two_cores.watermarker = Mark()
    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    thread.join(15)
    assert not thread.is_alive()
    assert ["closed" in str(error) for error in errors] == [True]
    assert soon(lambda: closed, 5)
    assert {name.startswith("chatterbox-render") for name in closed} == {where == "mark"}
    assert soon(lambda: not [t for t in {*threading.enumerate()} - before if t.name.startswith("chatterbox-")])


# ---- a broken device ------------------------------------------------------------------------------


def test_a_broken_device_ends_every_call():
    """Also those that were not yet taken in, though from then on every operation fails."""
    inside, broken = threading.Event(), threading.Event()

    def operation(*_) -> None:
        if broken.is_set():
            raise ValueError("an illegal memory access")

    def work() -> None:
        inside.set()
        assert broken.wait(20)
        operation()

    engine = scripted_engine(work=work)
    engine.wait_for_inputs = engine.tokens.clear = operation
    streams = [stream_of(engine, TOKENS).begin()]
    assert inside.wait(20)
    streams += [stream_of(engine, TOKENS).begin() for _ in range(3)]
    broken.set()
    assert soon(lambda: all(stream.done for stream in streams), 5)
    for stream in streams:
        with pytest.raises(ValueError, match="illegal"):
            list(stream)
    engine.close()


def test_a_broken_end_of_the_work_keeps_the_first_error():
    """Where all calls end, the memory of T3's batch is cleared, which may fail as the step did."""

    def first() -> None:
        raise ValueError("no more")

    def second() -> None:
        raise OSError("nor that")

    engine = scripted_engine()
    engine.release, engine.tokens.clear = first, second
    with pytest.raises(ValueError, match="no more"):
        engine.run(Call([scripted_utterance(TOKENS)]))
