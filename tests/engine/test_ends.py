"""How calls, threads and models end: in threads that outlive the main one, in callbacks, handlers and children."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import weakref
from functools import partial

import pytest
import torch
from threads import in_threads, soon
from token_runs import engine_of, request

from chatterbox_opt import Cancelled, OptimizedChatterboxTTS
from chatterbox_opt.engine import rendering
from chatterbox_opt.engine.request import Call, Utterance, copy_of
from chatterbox_opt.engine.workers import Workers

TEXT = "The last train had left an hour ago. " * 6
begin = Call.__init__
ENV = os.environ | {"OMP_NUM_THREADS": "2"}
PROCESS = """
import threading
from chatterbox_opt import OptimizedChatterboxTTS

def speak():
    text = "The last train had left an hour ago. " * {times}
    print("spoken", model.generate(text, seed=1, progress=lambda *_: begun.set()).shape[1] > 0, flush=True)

model, begun = OptimizedChatterboxTTS.from_mini(), threading.Event()
threading.Thread(target=speak, daemon={daemon}).start()
begun.wait()
"""


@pytest.fixture
def mini():
    model = OptimizedChatterboxTTS.from_mini(enable_watermark=False)
    yield model
    model.close()


# ---- threads and processes -----------------------------------------------------------------------


def in_process(**how):
    code = PROCESS.format(**how)
    return subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True, timeout=120)


def test_a_thread_speaks_on_after_the_main_one_has_ended():
    """Python's thread pools refuse work from then on."""
    done = in_process(times=4, daemon=False)
    assert "spoken True" in done.stdout, done.stderr


def test_a_process_ends_in_order_while_a_daemon_thread_speaks():
    """A thread that Python leaves in the middle of an operation would abort it."""
    done = in_process(times=20, daemon=True)
    assert done.returncode == 0, done.stderr


DROPPED = """
import time, weakref
from chatterbox_opt import OptimizedChatterboxTTS
from chatterbox_opt.engine.driver import Driver

def slow(engine):
    serve(engine)
    time.sleep(0.5)

def main():
    model = OptimizedChatterboxTTS.from_mini(enable_watermark=False)
    weakref.finalize(model.pipeline.engine, print, "freed", flush=True).atexit = False
    list(model.generate_stream("Hi.", seed=3, max_new_tokens=6))

serve, Driver._serve = Driver._serve, slow
main()
"""


def test_a_process_waits_for_the_thread_that_frees_a_dropped_model():
    """The thread of its streams may be the last to hold it; ended in the middle of that, it aborts the process."""
    command = [sys.executable, "-c", DROPPED]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "freed\n"), done.stderr


def test_work_for_a_pool_that_takes_none_is_done_here():
    workers, done = Workers(torch.device("cpu"), 2), []
    workers.start(done.append, 1).result()
    workers._pool.shutdown()
    assert workers.start(done.append, 2).result() is None
    assert done == [1, 2]


class NoMore(threading.Thread):
    """As of a process that may have no more threads."""

    def start(self) -> None:
        raise RuntimeError("can't start new thread")


def test_work_for_which_no_thread_can_be_started_is_done_once(monkeypatch):
    """The pool keeps what it was given when it fails to start a thread, and one that it has takes that later."""
    workers, done, free = Workers(torch.device("cpu"), 2), [], threading.Event()
    first = workers.start(lambda item: free.wait(20), "first")
    with monkeypatch.context() as patch:
        patch.setattr(threading, "Thread", NoMore)
        second = workers.start(done.append, "second")
    free.set()
    assert (first.result(20), second.result(20)) == (None, None)
    workers.close()
    assert done == ["second"]


def test_a_stream_for_which_no_thread_can_be_started_is_refused(mini, monkeypatch):
    """Later ones are spoken, and the model can be closed."""
    wanted = [chunk.shape[1] for chunk in mini.generate_stream("Hello.", seed=1)]
    assert soon(lambda: mini.pipeline.engine._thread is None)
    with monkeypatch.context() as patch:
        patch.setattr(threading, "Thread", NoMore)
        with pytest.raises(RuntimeError, match="can't start"):
            mini.submit("Hello.", seed=1)
    engine = mini.pipeline.engine
    assert not engine.inbox
    assert not engine._started
    assert [chunk.shape[1] for chunk in mini.generate_stream("Hello.", seed=1)] == wanted
    mini.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_stream_can_be_closed_in_a_forked_process(mini):
    stream = mini.submit(TEXT, seed=1, first_chunk=0.5)
    next(stream)
    child = os.fork()
    if not child:
        threading.Timer(20, os._exit, [3]).start()
        try:
            stream.close()
            os._exit(0)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("how", ["submit", "cancel"])
def test_a_forked_process_waits_for_no_thread_that_it_does_not_have(mini, how):
    """One that held the engine's lock at the fork never gives it back there."""
    stream, held, go = mini.submit(TEXT, seed=1, first_chunk=0.5), threading.Event(), threading.Event()

    def hold():
        with mini.pipeline.engine._changed:
            held.set()
            go.wait(30)

    threading.Thread(target=hold, daemon=True).start()
    assert held.wait(20)
    child = os.fork()
    if not child:
        threading.Timer(10, os._exit, [3]).start()
        error = raised_by(stream.cancel if how == "cancel" else partial(mini.submit, "Hello."))
        os._exit(0 if how == "cancel" or "forked" in str(error) else 2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    go.set()
    stream.close()


# ---- callbacks -----------------------------------------------------------------------------------


def test_a_model_closed_in_the_middle_of_a_step_ends_after_it(mini):
    """By a signal's handler, or a callback, on the thread that works for all, while a stream's thread waits for it."""
    stream = []

    def close(drawn, most):
        if not stream:
            in_threads(lambda: stream.append(mini.submit(TEXT, seed=2, first_chunk=0.5)))
            mini.close()

    def work():
        with pytest.raises(RuntimeError, match="closed"):
            mini.generate(TEXT, seed=1, progress=close)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        list(stream[0])


def test_what_cancels_a_task_ends_its_own_call(mini):
    """Raised in a callback, asyncio's CancelledError is of the caller whose callback it is, whoever does the work."""
    ready = threading.Barrier(2)

    def cancelled(drawn, most):
        if drawn > 10:
            raise asyncio.CancelledError

    def other():
        ready.wait(20)
        return mini.generate(TEXT, seed=1).shape[1]

    def one():
        ready.wait(20)
        with pytest.raises(asyncio.CancelledError):
            mini.generate(TEXT, seed=2, progress=cancelled)

    samples, _ = in_threads(other, one)
    assert samples


def test_each_caller_gets_an_error_of_its_own(mini, monkeypatch):
    """Raised in several threads, one object would get the tracebacks of all."""
    ready, tokens, engine = threading.Barrier(3), mini.pipeline.tokens, mini.pipeline.engine

    def decode():
        assert soon(lambda: len(tokens.live) == 3 or engine.inbox or engine.waiting)
        if len(tokens.live) == 3:
            raise MemoryError("no room")

    def speak():
        ready.wait(20)
        return raised_by(partial(mini.generate, "Hello there.", seed=1))

    monkeypatch.setattr(tokens, "decode", decode)
    errors = in_threads(speak, speak, speak)
    assert {str(error) for error in errors} == {"no room"}
    assert len({id(error) for error in errors}) == 3


def test_an_error_that_cannot_be_copied_is_told_as_it_is():
    class Wrapped(ValueError):
        def __init__(self, reason):
            super().__init__(f"it failed: {reason}")

    class Picky(ValueError):
        def __init__(self, one, other):
            super().__init__(one)

    for error in (Wrapped("no room"), Picky("no room", 2)):
        assert copy_of(error) is error
    plain = MemoryError("no room")
    assert copy_of(plain) is not plain
    assert repr(copy_of(plain)) == repr(plain)


# ---- memory --------------------------------------------------------------------------------------


def test_a_dropped_model_frees_its_memory_at_once():
    gc.collect()
    gc.disable()
    try:
        model = OptimizedChatterboxTTS.from_mini(enable_watermark=False)
        model.generate("Hi there.", seed=1)
        pipeline = model.pipeline
        kept = [weakref.ref(part) for part in (pipeline.engine, pipeline.t3, pipeline.s3gen.flow)]
        del model, pipeline
        assert [ref() for ref in kept] == [None] * len(kept)
    finally:
        gc.enable()


@pytest.mark.parametrize("how", ["generate", "generate_batch", "generate_stream", "submit", "takes"])
def test_sound_goes_with_its_last_reference(mini, how, monkeypatch):
    """A full collection is rare beside torch: what waits for it are dozens of long speeches."""
    made = []
    monkeypatch.setattr(Call, "__init__", lambda call, *a, **k: made.append(weakref.ref(call)) or begin(call, *a, **k))
    text, speak = "The last train had left.", {
        "generate": lambda: mini.generate(text, seed=1), "takes": lambda: mini.generate(text, seed=1, takes=2),
        "generate_batch": lambda: mini.generate_batch([text, text], seeds=1),
        "generate_stream": lambda: list(mini.generate_stream(text, seed=1)),
        "submit": lambda: list(mini.submit(text, seed=1)),
    }[how]  # fmt: skip
    gc.collect()
    gc.disable()
    try:
        speak()
        assert made
        assert soon(lambda: all(ref() is None for ref in made))
    finally:
        gc.enable()


def test_a_call_that_failed_keeps_nothing_alive(llama):
    engine, stop = engine_of(llama), threading.Event()
    stop.set()

    class Held:
        pass

    def failing() -> weakref.ref:
        held = Held()
        with pytest.raises(Cancelled):
            engine.run(Call([request(llama.config)], cancel=stop))
        return weakref.ref(held)

    gc.collect()
    gc.disable()
    try:
        assert failing()() is None
    finally:
        gc.enable()


def test_a_cancelled_call_keeps_no_memory_while_nothing_is_spoken(mini, monkeypatch):
    """Even if another thread was at a step of its sound, and nobody calls any more."""
    engine, stop, begun = mini.pipeline.engine, threading.Event(), threading.Event()
    monkeypatch.setattr(engine.renderer.workers, "count", 2)
    monkeypatch.setattr(engine.scheduler, "cores", 2)
    advance, calls = engine.renderer.mel.advance, []

    def slowly(solve):
        calls.extend(weakref.ref(call) for call in engine.calls)
        if threading.current_thread().name.startswith("chatterbox-render"):
            begun.set()
            stop.wait(20)
        advance(solve)

    monkeypatch.setattr(engine.renderer.mel, "advance", slowly)
    thread = threading.Thread(target=lambda: raised_by(partial(mini.generate_batch, [TEXT, "No."], cancel=stop)))
    thread.start()
    assert begun.wait(20)
    stop.set()
    thread.join(20)
    assert calls
    assert soon(lambda: gc.collect() >= 0 and all(ref() is None for ref in calls))


# ---- long speech ---------------------------------------------------------------------------------


class Slow:
    """The sink of a speech that takes long to join and to mark."""

    def __init__(self, fails: type[BaseException] | None) -> None:
        self.fails = fails
        self.begun, self.go, self.thread = threading.Event(), threading.Event(), None

    def add(self, utterance: Utterance, wave: torch.Tensor, last: bool) -> None: ...

    def finish(self) -> None:
        self.thread = threading.current_thread().name
        self.begun.set()
        if self.fails is not None:
            raise self.fails
        assert self.go.wait(20)


@pytest.mark.parametrize("fails", [None, OSError, asyncio.CancelledError])
def test_a_speech_that_is_finished_holds_up_no_other(mini, fails, monkeypatch):
    engine, sink = mini.pipeline.engine, Slow(fails)
    monkeypatch.setattr(engine.renderer.workers, "count", 2)
    monkeypatch.setattr(engine.scheduler, "cores", 2)
    monkeypatch.setattr(rendering, "BRIEF", 0.0)
    other = mini.submit(TEXT * 4, seed=1, first_chunk=0.5)  # so that the call is not alone
    next(other)
    render = partial(mini.pipeline.render, [torch.arange(20)], mini.conds, 1)
    with monkeypatch.context() as patch:
        patch.setattr("chatterbox_opt.pipeline.WholeSpeech", lambda *_: sink)
        thread = threading.Thread(target=lambda: errors.append(raised_by(render)), daemon=True)
        errors: list = []
        thread.start()
        assert sink.begun.wait(20)
    if not fails:
        assert mini.generate_tokens("Hello.", seed=3, max_new_tokens=9).numel()
        assert not errors, "it is still being finished"
        sink.go.set()
    thread.join(20)
    (error,) = errors
    assert isinstance(error, fails or AttributeError), "its sink has no waves"
    assert sink.thread.startswith("chatterbox-render")
    other.close()
    assert soon(lambda: not engine.renderer.finishing)


def raised_by(work) -> BaseException | None:
    try:
        work()
    except BaseException as error:
        return error
    return None
