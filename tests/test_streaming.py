"""Errors, cancelling and threads of streams."""

import gc
import signal
import subprocess
import sys
import threading
import time
import weakref
from itertools import count

import pytest
import torch
from scripted import CONTROL, one_millisecond, scripted_engine, scripted_utterance, stream_of
from threads import soon

from chatterbox_opt.engine.noise import RequestNoise
from chatterbox_opt.engine.request import Call, Cancelled
from chatterbox_opt.streaming import HELD

HUNDRED = list(range(1, 101))
ENDLESS = list(range(1, 6001)) * 2  # far more than is listened to


def engine_threads() -> int:
    return sum(t.name == "chatterbox-engine" for t in threading.enumerate())


def test_items_come_in_order_and_end():
    got = torch.cat(list(stream_of(scripted_engine(), HUNDRED)), 1)
    assert got[0].tolist() == HUNDRED
    assert soon(lambda: engine_threads() == 0)


def test_a_stream_begins_with_its_first_chunk():
    began, engine = [], scripted_engine(work=one_millisecond)
    stream = stream_of(engine, HUNDRED, prepare=lambda: began.append(1))
    assert not began
    assert not engine.inbox
    assert engine_threads() == 0
    assert next(stream).numel() == 25
    assert began == [1]
    stream.close()
    submitted = stream_of(engine, HUNDRED, prepare=lambda: began.append(1)).begin()
    assert began == [1, 1]
    assert soon(lambda: submitted.started), "though nobody has asked for a chunk"
    submitted.close()


def fail_after(n: int, error=ValueError):
    """Returns work that raises at its n-th call."""
    turns = count(1)

    def work() -> None:
        if next(turns) == n:
            raise error("no more")

    return work


def test_an_error_is_raised_after_what_came_before_it():
    stream = stream_of(scripted_engine(work=fail_after(50)), HUNDRED).begin()
    assert soon(lambda: stream.done)
    assert next(stream).numel() == 25
    with pytest.raises(ValueError, match="no more"):
        next(stream)
    assert list(stream) == []
    assert soon(lambda: engine_threads() == 0)


def test_an_engine_survives_an_error():
    engine = scripted_engine(work=fail_after(50))
    with pytest.raises(ValueError, match="no more"):
        list(stream_of(engine, HUNDRED))
    assert torch.cat(list(stream_of(engine, HUNDRED)), 1)[0].tolist() == HUNDRED
    assert engine.stats()["failed"] == engine.stats()["finished"] == 1


def test_ctrl_c_is_raised_where_it_came_and_nowhere_else():
    engine = scripted_engine(work=fail_after(3, KeyboardInterrupt))
    own, other = stream_of(engine, HUNDRED), stream_of(engine, HUNDRED)
    engine.inbox.append(other._call)
    with pytest.raises(KeyboardInterrupt):
        engine.run(own._call)
    assert isinstance(other._call.error, RuntimeError)
    assert torch.cat(list(stream_of(engine, HUNDRED)), 1)[0].tolist() == HUNDRED


def test_ctrl_c_loses_no_call_that_is_being_taken_in(monkeypatch):
    def interrupted(noise) -> None:
        raise KeyboardInterrupt

    engine = scripted_engine()
    other = stream_of(engine, HUNDRED)
    engine.inbox.append(other._call)
    with monkeypatch.context() as patch:
        patch.setattr(RequestNoise, "fork", interrupted)  # which streams need at once
        with pytest.raises(KeyboardInterrupt):
            engine.run(Call([scripted_utterance(HUNDRED)]))
    assert isinstance(other._call.error, RuntimeError), "its listener is told, and does not wait for ever"
    assert torch.cat(list(stream_of(engine, HUNDRED)), 1)[0].tolist() == HUNDRED


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_a_waiter_that_is_interrupted_leaves_nothing_behind():
    def interrupted(*_):
        raise KeyboardInterrupt

    engine = scripted_engine(work=one_millisecond)
    driving = stream_of(engine, ENDLESS)
    next(driving)  # another thread drives
    before = signal.signal(signal.SIGALRM, interrupted)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            engine.run(Call([scripted_utterance(ENDLESS)]))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert soon(lambda: engine.calls == [driving._call], 5), "its slot is free"
    driving.close()


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to threads here")
def test_one_who_is_interrupted_while_he_waits_for_the_place_holds_up_nobody():
    """As in warmup(). Another thread gets the signal, so that it is told of when the waiting ends."""
    sent = []

    def interrupted(*_):
        raise KeyboardInterrupt

    def work() -> None:
        one_millisecond()
        if engine._asked and not sent:
            time.sleep(0.05)  # the other waits by then
            sent.append(signal.pthread_kill(threading.get_ident(), signal.SIGALRM))

    def ask() -> None:
        while not sent:
            with engine.between_steps():
                pass
            time.sleep(0.02)  # for steps of the other

    engine = scripted_engine(work=work)
    driving = stream_of(engine, ENDLESS)
    next(driving)
    before = signal.signal(signal.SIGALRM, interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            ask()
    finally:
        signal.signal(signal.SIGALRM, before)
    tokens = driving._utterances[0].tokens
    drawn = len(tokens)
    assert soon(lambda: len(tokens) > drawn + 10, 5)
    driving.close()


def test_a_call_without_memory_fails_alone():
    engine, asked = scripted_engine(), []

    def reserve(slots: int, length: int) -> None:
        asked.append(length)
        if len(asked) == 1:
            raise MemoryError("too long")

    engine.tokens.reserve = reserve
    large, other = stream_of(engine, HUNDRED), stream_of(engine, HUNDRED)
    engine.inbox.append(large._call)
    assert torch.cat(list(other), 1)[0].tolist() == HUNDRED
    assert isinstance(large._call.error, MemoryError)


@pytest.mark.parametrize("how", ["close", "drop", "break"])
def test_an_abandoned_stream_ends_its_work(how):
    engine = scripted_engine(work=one_millisecond)
    items = stream_of(engine, ENDLESS)
    if how == "break":
        for item in items:
            if item.numel() > 50:
                break
        del item
    else:
        assert next(items).numel() == 25
    assert engine_threads() == 1
    if how == "close":
        items.close()
        assert not engine.calls
        assert list(items) == []
    del items
    gc.collect()
    assert soon(lambda: engine_threads() == 0)
    assert not engine.calls
    assert not engine.tokens.live
    assert engine.stats()["cancelled"] == 1


def test_a_garbage_collection_inside_the_engines_thread_may_drop_it():
    class Cycle:
        pass

    dropped, collected = threading.Event(), []

    def work() -> None:
        one_millisecond()
        if dropped.is_set() and not collected:
            collected.append(threading.current_thread().name)
            gc.collect()

    holder = Cycle()
    holder.items, holder.me = stream_of(scripted_engine(work=work), ENDLESS), holder
    next(holder.items)
    gc.disable()
    try:
        del holder
        dropped.set()
        assert soon(lambda: engine_threads() == 0)
        assert collected == ["chatterbox-engine"]
    finally:
        gc.enable()


def test_an_error_keeps_nothing_alive():
    class Large:
        pass

    kept = []

    def work() -> None:
        large = Large()
        kept.append(weakref.ref(large))
        raise ValueError("no more")

    gc.disable()
    try:
        with pytest.raises(ValueError, match="no more") as caught:
            next(stream_of(scripted_engine(work=work), HUNDRED))
        del caught
        assert soon(lambda: kept[0]() is None)
    finally:
        gc.enable()


def test_a_process_may_end_in_the_middle():
    """With a stream that has begun and is neither finished nor closed."""
    code = (
        "from chatterbox_opt.tts import ChatterboxTTS\n"
        "stream = ChatterboxTTS.from_mini('cpu').generate_stream('Hello there. ' * 20, seed=1)\n"
        "print(len(next(stream)))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "1\n"), ended.stderr


@pytest.mark.parametrize("how", ["event", "cancel"])
def test_the_callers_event_cancels_a_stream(how):
    stop = threading.Event()
    items = stream_of(scripted_engine(work=one_millisecond), ENDLESS, cancel=stop)
    next(items)
    stop.set() if how == "event" else items.cancel()
    with pytest.raises(Cancelled):
        list(items)
    assert soon(lambda: engine_threads() == 0)


class Broken:
    def is_set(self) -> bool:
        raise OSError("no event any more")


def test_a_broken_cancel_ends_only_its_own_call():
    engine = scripted_engine(work=one_millisecond)
    other = stream_of(engine, HUNDRED).begin()
    with pytest.raises(OSError, match="no event"):
        list(stream_of(engine, ENDLESS, cancel=Broken()))
    assert torch.cat(list(other), 1)[0].tolist() == HUNDRED
    engine.close()


def test_a_notify_that_raises_leaves_the_engine_as_it_was():
    """As asyncio's call_soon_threadsafe does once its loop is closed."""

    def closed() -> None:
        raise RuntimeError("Event loop is closed")

    engine = scripted_engine(work=one_millisecond)
    stream = stream_of(engine, HUNDRED)
    stream.notify(closed)
    stream.begin()
    assert soon(lambda: stream.done)
    assert soon(lambda: engine_threads() == 0, 2)
    assert torch.cat(list(stream_of(engine, HUNDRED)), 1)[0].tolist() == HUNDRED
    engine.close()


def test_a_slow_listener_delays_no_other_call():
    engine = scripted_engine(work=one_millisecond)
    slow = stream_of(engine, ENDLESS).begin()
    assert soon(lambda: len(slow._queue.chunks) == HELD)
    assert engine.stats()["underruns"] == 0, "it has always had something to take"
    ahead = slow._utterances[0].tokens
    for _ in range(3):
        drawn = len(ahead)
        assert torch.cat(list(stream_of(engine, HUNDRED)), 1)[0].tolist() == HUNDRED
        assert len(ahead) < drawn + 10 * len(HUNDRED), "about a step for each token of the other"
    quiet = scripted_utterance(HUNDRED)
    quiet.voice = None  # only its tokens are wanted
    engine.run(Call([quiet]))
    assert quiet.tokens == HUNDRED
    assert len(slow._queue.chunks) == HELD, "nobody has taken one"
    told = slow._call.utterances[0].rendered
    time.sleep(0.1)
    assert slow._call.utterances[0].rendered == told
    samples = [t for _ in range(3 * HELD) for t in next(slow)[0].tolist()]
    assert samples == list(range(1, len(samples) + 1)), "it goes on where it stood"
    slow.close()


def test_take_and_notify():
    """take() and notify(), as a server uses them."""
    engine, told = scripted_engine(work=one_millisecond), []
    stream = stream_of(engine, HUNDRED)
    stream.notify(lambda: told.append(threading.current_thread().name))
    assert not told
    assert stream.take() is None, "it does not begin by itself"
    assert not stream.started
    stream.begin()
    heard = []
    assert soon(lambda: told)
    while True:
        try:
            chunk = stream.take()
        except StopIteration:
            break
        if chunk is None:
            time.sleep(0.001)
        else:
            heard += chunk[0].tolist()
    assert heard == HUNDRED
    assert stream.started
    assert stream.done
    assert set(told) == {"chatterbox-engine"}
    assert len(told) >= 3, "each chunk and the end"
    with pytest.raises(StopIteration):
        stream.take()
    late = stream_of(engine, HUNDRED).begin()
    assert soon(lambda: late.done)
    late.notify(lambda: told.append("late"))
    assert told[-1] == "late", "what is there already is told of at once"


def test_a_long_texts_pieces_are_not_searched_one_for_another():
    """Of an hour that would take a second, for a listener that asks after every chunk."""

    class Places(list):
        def __iter__(self):
            raise AssertionError("all of them are looked at for one")

    stream = stream_of(scripted_engine(), *[list(range(1, 40))] * 5)
    stream._queue.joiner.places = Places()
    assert [len(stream.pieces) for _ in stream][-1] == 5
    assert [piece.samples[0] < piece.samples[1] for piece in stream.pieces] == [True] * 5


def test_no_sound_at_all():
    for script in ([], [CONTROL] * 60):
        with pytest.raises(ValueError, match="no sound"):
            list(stream_of(scripted_engine(), script))


def test_a_closed_engine_ends_its_streams_and_takes_no_more():
    engine = scripted_engine(work=one_millisecond)
    stream = stream_of(engine, ENDLESS)
    next(stream)
    engine.close()
    assert engine_threads() == 0
    with pytest.raises(RuntimeError, match="closed"):
        list(stream)
    late = stream_of(engine, HUNDRED)
    with pytest.raises(RuntimeError, match="closed"):
        next(late)
    assert list(late) == [], "nothing of it is waited for"
    late.close()
