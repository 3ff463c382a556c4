"""When chunks are rendered, how pieces meet, and what a thread behind an iterator owes to who holds it."""

import gc
import random
import subprocess
import sys
import threading
import time
import weakref
from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from chatterbox_opt.audio.joins import join
from chatterbox_opt.engine.stream import LOOKAHEAD
from chatterbox_opt.streaming import LONGEST, Chunks, Narrator, Outlet, chunk_sizes


def test_chunks_grow_to_a_limit():
    first, *sizes = islice(chunk_sizes(25, 10), 8)
    assert first == 35
    assert sizes == sorted(sizes)
    assert sizes[0] == 38
    assert sizes[-1] == sizes[-2] == LONGEST
    assert list(islice(chunk_sizes(200, 10), 3)) == [210, 200, 200]
    assert next(islice(chunk_sizes(25, 10), 5000, None)) == LONGEST, "hours of speech are chunks too"


@pytest.mark.parametrize("seed", range(5))
def test_chunks_of_pieces_sound_as_the_pieces_joined(seed):
    chance = random.Random(seed)
    parts = [torch.randn(chance.choice([0, 700, 5000, 9000])) for _ in range(4)]
    heard: list[torch.Tensor] = []
    outlet = Outlet(None, heard.append, len(parts))
    for part in parts:
        inside = range(480, len(part) - 480)  # a chunk is longer than a fade
        cut = sorted(chance.choices(inside, k=chance.randrange(3))) if inside else []
        chunks = part.tensor_split(cut)
        for i, chunk in enumerate(chunks):
            outlet.add(chunk, last=i == len(chunks) - 1)
    sounding = [p for p in parts if len(p)]
    assert outlet.sounding == bool(sounding)
    got, wanted = torch.cat([torch.zeros(0), *heard]), join(sounding)
    if len(parts[-1]):
        assert torch.equal(got, wanted)
    else:  # what ended in silence could not know that nothing would follow: its end is faded
        assert len(got) == len(wanted)
        assert torch.equal(got[:-240], wanted[:-240])


class Recorder:
    """In the place of an engine's Stream: every token is a sample."""

    def __init__(self) -> None:
        self.told: list[int] = []
        self.calls: list[tuple[int, bool]] = []

    def add(self, tokens: torch.Tensor, last: bool = False) -> torch.Tensor:
        certain = tokens if last else tokens[:-LOOKAHEAD]
        new = certain[len(self.told) :]
        self.told += new.tolist()
        self.calls.append((len(new), last))
        return new.float()


def audible(tokens: torch.Tensor, padded: bool = True) -> torch.Tensor:
    return tokens[tokens < 100]


@pytest.mark.parametrize("seed", range(10))
def test_every_token_is_told_once_and_in_order(seed):
    """Whatever the pace at which the pieces' tokens come."""
    chance = random.Random(seed)
    whole = [[chance.randrange(101) for _ in range(chance.choice([0, 1, 40, 130, 400]))] for _ in range(3)]
    live, heard = [Recorder() for _ in whole], []
    outlet = Outlet(None, heard.append, len(whole))
    narrator = Narrator(live, chunk_sizes(25, 0), outlet, audible, click=0)
    drawn: list[list[int]] = [[] for _ in whole]
    results = [None] * len(whole)
    while not all(results):
        for i, tokens in enumerate(whole):
            drawn[i] = tokens[: len(drawn[i]) + chance.randrange(9)]
            if len(drawn[i]) == len(tokens):
                results[i] = SimpleNamespace(tokens=torch.tensor(tokens, dtype=torch.long))
        narrator.look(drawn, results)
    for recorder, tokens in zip(live, whole):
        assert recorder.told == [t for t in tokens if t < 100]
        assert [last for _, last in recorder.calls] == [False] * (len(recorder.calls) - 1) + [True]
    assert narrator.index == len(whole)


def test_the_first_chunk_does_not_wait_for_the_end():
    live, heard = [Recorder()], []
    narrator = Narrator(live, chunk_sizes(25, 0), Outlet(None, heard.append, 1), audible, click=0)
    tokens = list(range(90))
    for n in range(1, 91):
        narrator.look([tokens[:n]], [None])
        assert len(live[0].told) == (25 if n >= 25 + LOOKAHEAD else 0) + (38 if n >= 25 + 38 + LOOKAHEAD else 0)
    narrator.look([tokens], [SimpleNamespace(tokens=torch.tensor(tokens))])
    assert live[0].told == tokens


def test_a_click_is_left_out_of_the_end_only():
    live, heard = [Recorder()], []
    narrator = Narrator(live, chunk_sizes(25, 0), Outlet(None, heard.append, 1), audible, click=4)
    tokens = list(range(60))
    narrator.look([tokens[:40]], [None])
    narrator.look([tokens], [SimpleNamespace(tokens=torch.tensor(tokens))])
    assert torch.cat(heard).tolist() == tokens[:-4]


# ---- the thread ----------------------------------------------------------------------------------


def threads() -> int:
    return sum(t.name == "chatterbox-stream" for t in threading.enumerate())


def soon(done) -> bool:
    until = time.monotonic() + 5
    while not done() and time.monotonic() < until:
        time.sleep(0.001)
    return done()


def endless(emit, cancel) -> None:
    n = 0
    while not cancel.is_set():
        emit(n)
        n += 1
        time.sleep(0.001)


def test_items_come_in_order_and_end():
    assert list(Chunks(lambda emit, cancel: [emit(i) for i in range(100)])) == list(range(100))
    assert threads() == 0


def test_nothing_begins_before_it_is_asked_for():
    began = []
    items = Chunks(lambda emit, cancel: (began.append(1), emit(1)))
    assert not began
    assert next(items) == 1


def test_an_error_is_raised_after_what_came_before_it():
    def work(emit, cancel):
        emit(1)
        raise ValueError("no more")

    items = Chunks(work)
    assert next(items) == 1
    with pytest.raises(ValueError, match="no more"):
        next(items)
    assert threads() == 0


@pytest.mark.parametrize("how", ["close", "drop", "break"])
def test_who_stops_listening_stops_the_work(how):
    items = Chunks(endless)
    if how == "break":
        for item in items:
            if item == 3:
                break
    else:
        assert next(items) == 0
    assert threads() == 1
    if how == "close":
        items.close()
        assert threads() == 0
        assert list(items) == []
    del items
    gc.collect()
    assert soon(lambda: threads() == 0)


def test_a_garbage_collection_inside_the_thread_may_drop_it():
    class Cycle:
        pass

    def work(emit, cancel):
        emit(1)
        dropped.wait()
        gc.collect()
        while not cancel.is_set():
            time.sleep(0.001)

    dropped, holder = threading.Event(), Cycle()
    holder.items, holder.me = Chunks(work), holder
    next(holder.items)
    gc.disable()
    try:
        del holder
        dropped.set()
        assert soon(lambda: threads() == 0)
    finally:
        gc.enable()


def test_an_error_keeps_nothing_alive():
    class Large:
        pass

    kept = []

    def work(emit, cancel):
        large = Large()
        kept.append(weakref.ref(large))
        raise ValueError("no more")

    gc.disable()
    try:
        with pytest.raises(ValueError, match="no more") as caught:
            next(Chunks(work))
        del caught
        assert soon(lambda: kept[0]() is None)
    finally:
        gc.enable()


def test_a_process_may_end_in_the_middle():
    """With a stream that was begun and is neither at its end nor closed."""
    code = (
        "from chatterbox_opt.tts import ChatterboxTTS\n"
        "stream = ChatterboxTTS.from_mini('cpu').generate_stream('Hello there. ' * 20, seed=1)\n"
        "print(len(next(stream)))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "1\n"), ended.stderr


def test_the_callers_own_event_stops_it_too():
    stop = threading.Event()
    items = Chunks(endless, stop)
    next(items)
    stop.set()
    list(items)
    assert threads() == 0


def test_a_slow_listener_holds_up_nothing():
    done = threading.Event()

    def work(emit, cancel):
        for i in range(10):
            emit(i)
        done.set()

    items = Chunks(work)
    next(items)
    assert done.wait(5)
    assert list(items) == list(range(1, 10))
