"""Requests that share the running batch: each gives what it gives alone, and errors of one do not affect others."""

import gc
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from threads import in_threads, soon
from token_runs import CPU, EXACT, MLX, draw, engine_of, everywhere, mixed, request, tokens_of

from chatterbox_opt import Cancelled, OptimizedChatterboxTTS
from chatterbox_opt.engine.linears import give_back_memory
from chatterbox_opt.engine.noise import RequestNoise
from chatterbox_opt.engine.request import Call, NotFinite


@pytest.fixture(scope="module")
def model(device):
    return OptimizedChatterboxTTS.from_random(device, size="tiny", seed=0)


class Steps:
    """Steps an engine by hand."""

    def __init__(self, engine) -> None:
        self.engine = engine

    def submit(self, *requests, **how) -> Call:
        call = Call(requests, **how)
        self.engine._submit(call)
        return call

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.engine.step()

    def finish(self) -> None:
        while self.engine.calls or self.engine.inbox:
            self.engine.step()


# ---- joining and leaving -------------------------------------------------------------------------


@pytest.mark.kernels
@pytest.mark.parametrize("poll", [1, 8])
@pytest.mark.parametrize("family", ["tts", "turbo"])
@everywhere
def test_joining_and_leaving_changes_no_tokens(family, poll, llama, gpt):
    """Whatever shares the batch: other lengths, guidance or none, other filters, greedy."""
    t3 = gpt if family == "turbo" else llama
    alone = [tokens_of(t3, [r])[0] for r in mixed(t3.config)]
    for gap in (1, 2, 5, 17):
        engine = Steps(engine_of(t3, EXACT.replace(poll_every=poll)))
        requests = mixed(t3.config)
        for r in requests:
            engine.submit(r)
            engine.step(gap)
        engine.finish()
        assert [r.tokens for r in requests] == alone
        after = [r.noise.normal((2,)) for r in requests]
        wanted = [r.noise.normal((2,)) for r in draw(engine_of(t3), mixed(t3.config))]
        assert all(map(torch.equal, after, wanted)), "and its generator stands where it stands alone"


@everywhere
def test_requests_wait_for_free_slots(llama):
    engine = Steps(engine_of(llama, EXACT.replace(slots=2)))
    requests = mixed(llama.config, 6)
    for r in requests:
        engine.submit(r)
    most = 0
    while engine.engine.calls or engine.engine.inbox:
        engine.step()
        most = max(most, len(engine.engine.tokens.live))
    assert most == 2
    assert [r.tokens for r in requests] == [tokens_of(llama, [r])[0] for r in mixed(llama.config, 6)]


@everywhere
def test_what_joins_first_has_room_made_for_it(llama, monkeypatch):
    """In a shared cache: the oldest call's next utterance may be due after a later call's, which needs more room."""
    from chatterbox_opt.engine.tokens import TokenRunner

    monkeypatch.setattr(TokenRunner, "shared", property(lambda _: True))
    engine = Steps(engine_of(llama, EXACT.replace(slots=2)))
    batch = engine.submit(*(request(llama.config, n=5, seed=i, max_new_tokens=30) for i in range(6)))
    engine.step()
    late = engine.submit(request(llama.config, n=5, max_new_tokens=1700))
    late.submitted = batch.submitted  # before the deadlines of what waits of the batch
    for _ in range(4000):
        engine.step()
        if batch.done and late.done:
            return
    pytest.fail(f"{len(engine.engine.waiting)} wait, {len(engine.engine.tokens.live)} speak")


@pytest.mark.kernels
def test_half_precision_and_int8_are_the_same_in_any_batch(llama):
    """There a last bit can change a token: every utterance attends in its own call."""
    import copy

    for options in (EXACT.replace(dtype="bfloat16"), EXACT.replace(quantize="int8")):
        t3 = copy.deepcopy(llama).to(getattr(torch, options.dtype))
        engine = engine_of(t3, options)
        alone = [draw(engine, [r])[0].tokens for r in mixed(t3.config)]
        steps, requests = Steps(engine), mixed(t3.config)
        for r in requests:
            steps.submit(r)
            steps.step(3)
        steps.finish()
        assert [r.tokens for r in requests] == alone


@pytest.mark.kernels
@everywhere
def test_concurrent_streams_batches_and_single_calls(model):
    texts = ["Hello there.", "Good morning to you all.", "No.", "Well, well."]
    how = dict(max_new_tokens=50)
    alone = [model.generate(t, seed=i, **how) for i, t in enumerate(texts)]
    streamed = [torch.cat(list(model.generate_stream(t, seed=i, **how)), 1) for i, t in enumerate(texts)]

    def whole(i):
        return model.generate(texts[i], seed=i, **how)

    def stream(i):
        return torch.cat(list(model.generate_stream(texts[i], seed=i, **how)), 1)

    def batch():
        return model.generate_batch(texts, seeds=range(4), **how)

    got, *singly = in_threads(batch, *(partial(work, i) for work in (whole, stream) for i in range(4)))
    for mine, wanted in zip([*got, *singly], [*alone, *alone, *streamed]):
        assert (mine - wanted).abs().max() < 1e-4


# ---- isolation -----------------------------------------------------------------------------------


@everywhere
def test_an_error_ends_only_its_own_call(llama, monkeypatch):
    engine = Steps(engine_of(llama))
    good, bad = request(llama.config), request(llama.config, seed=1)
    prefix = engine.engine.tokens.prefixes.get

    def fails(cond):
        if cond is bad.cond:
            raise OSError("no space left")
        return prefix(cond)

    monkeypatch.setattr(engine.engine.tokens.prefixes, "get", fails)
    first = engine.submit(good)
    engine.step(3)
    second = engine.submit(bad)
    engine.finish()
    assert first.error is None
    assert good.tokens == tokens_of(llama, [request(llama.config)])[0]
    assert isinstance(second.error, OSError)
    assert engine.engine.stats()["failed"] == 1


@everywhere
def test_a_number_that_fits_no_tensor_ends_only_its_own_call(llama):
    engine = Steps(engine_of(llama))
    good, bad, later = (request(llama.config, seed=i) for i in range(3))
    object.__setattr__(bad.sampling, "top_k", 10**30)  # options refuse it
    first = engine.submit(good)
    engine.step(3)
    calls = [engine.submit(bad), engine.submit(later)]
    engine.finish()
    assert [first.error, calls[1].error] == [None, None]
    assert calls[0].error is not None
    assert [good.tokens, later.tokens] == [tokens_of(llama, [request(llama.config, seed=i)])[0] for i in (0, 2)]


@pytest.mark.parametrize("shared", [False, True])
@everywhere
def test_nan_ends_only_its_own_request(llama, shared, monkeypatch):
    from chatterbox_opt.engine.tokens import TokenRunner

    monkeypatch.setattr(TokenRunner, "shared", property(lambda _: shared))
    wanted = tokens_of(llama, [request(llama.config)])[0]
    engine = Steps(engine_of(llama, EXACT.replace(poll_every=4)))
    good, bad = request(llama.config), request(llama.config, seed=1, max_new_tokens=50)
    bad.cond.speaker_emb = torch.full_like(bad.cond.speaker_emb, torch.nan)
    calls = [engine.submit(good), engine.submit(bad)]
    engine.finish()
    assert good.tokens == wanted
    assert isinstance(calls[1].error, NotFinite)
    assert len(bad.tokens) <= 4
    assert draw(engine.engine, [request(llama.config)])[0].tokens == wanted, "nothing of it is left in the memory"


@everywhere
def test_an_error_of_a_sink_ends_its_call(model):
    texts, how = ["Hello there.", "No."], dict(max_new_tokens=20)
    wanted = model.generate(texts[1], seed=1, **how)

    class Full:
        def apply_watermark(self, wav, sample_rate):
            raise OSError("disk full")

    stream = model.submit(texts[0], seed=0, first_chunk=0.4, **how)
    marker, model.watermarker = model.watermarker, Full()
    try:
        broken = model.submit(texts[0], seed=0, **how)
        model.watermarker = marker
        fine = model.submit(texts[1], seed=1, **how)
        with pytest.raises(OSError, match="disk full"):
            list(broken)
        assert torch.equal(torch.cat(list(fine), 1), wanted)
        assert len(list(stream)) >= 1
    finally:
        model.watermarker = marker


@pytest.mark.parametrize("state", ["waiting", "speaking", "rendering"])
@everywhere
def test_cancel_in_every_state(model, state, monkeypatch):
    engine = model.pipeline.engine
    before = engine.stats()["cancelled"]
    if state == "waiting":
        monkeypatch.setattr(type(engine.tokens), "free", property(lambda _: 0))
    tokens = 6 if state == "rendering" else 900
    how = dict(first_chunk=1.0, max_new_tokens=tokens, n_cfm_timesteps=100)
    stream = model.submit("Hello there, and so on.", seed=1, **how)
    reached = {
        "waiting": lambda: engine.waiting, "speaking": lambda: engine.tokens.live,
        "rendering": lambda: any(r.solve is not None for r in engine.renderer.begun),
    }
    assert soon(reached[state])
    stream.cancel()
    assert soon(lambda: stream.done, 5)
    with pytest.raises(Cancelled):
        list(stream)
    assert soon(lambda: not (engine.calls or engine.waiting or engine.renderer.begun or engine.tokens.live))
    assert engine.stats()["cancelled"] == before + 1


# ---- threads, processes --------------------------------------------------------------------------


@everywhere
def test_close_ends_everything(device):
    model = OptimizedChatterboxTTS.from_random(device, size="tiny")
    stream = model.submit("Hello there.", max_new_tokens=900)
    assert soon(lambda: stream.started)
    model.close()
    with pytest.raises(RuntimeError, match="closed"):
        list(stream)
    with pytest.raises(RuntimeError, match="closed"):
        model.generate("Hello.")
    assert not [t for t in threading.enumerate() if t.name == "chatterbox-engine"]


def speak_in_a_child(model, queue) -> None:
    try:
        model.generate("Hello.", max_new_tokens=4)
    except RuntimeError as error:
        queue.put(str(error))
    else:
        queue.put("")


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_forked_process_gets_an_error(model):
    model.generate("Hello.", max_new_tokens=4)
    fork = multiprocessing.get_context("fork")
    queue = fork.SimpleQueue()
    child = fork.Process(target=speak_in_a_child, args=(model, queue))
    child.start()
    child.join(30)
    assert "fork" in queue.get()


FORKING = """
import os, sys, torch
from chatterbox_opt import OptimizedChatterboxTTS
torch.set_num_threads(2)
model = OptimizedChatterboxTTS.from_mini()
model.generate("Hello.", max_new_tokens=4)
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
model.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_comes_to_its_end():
    """Its exit closes the model, whose operations would wait for threads that the fork left behind."""
    subprocess.run([sys.executable, "-c", FORKING], env=os.environ | {"OMP_NUM_THREADS": "2"}, check=True, timeout=60)


@pytest.mark.parametrize("call", ["generate", "generate_stream", "warmup"])
def test_a_call_from_its_own_progress_is_refused(model, call):
    def again(*_):
        list(model.warmup() if call == "warmup" else getattr(model, call)("No."))

    with pytest.raises(RuntimeError, match="own callback"):
        model.generate("Hello.", max_new_tokens=4, progress=again)
    assert model.generate("Hello.", max_new_tokens=4).shape[1]


@everywhere
def test_concurrent_calls_without_a_seed_differ(model):
    """A single call continues torch's global generators; concurrent ones take a seed from them."""
    torch.manual_seed(3)
    wanted = model.generate_tokens("Hello there.", max_new_tokens=30)
    torch.manual_seed(3)
    held = RequestNoise(CPU, None)  # somebody continues them
    other = model.generate_tokens("Hello there.", max_new_tokens=30)
    assert not torch.equal(other, wanted)
    del held
    gc.collect()
    torch.manual_seed(3)
    assert torch.equal(model.generate_tokens("Hello there.", max_new_tokens=30), wanted)


@everywhere
def test_stats(model):
    before = model.stats()
    stream = model.submit("Hello there.", seed=1, max_new_tokens=200, first_chunk=0.5)
    assert soon(lambda: model.stats()["live"] == 1)
    assert model.stats()["rows"] == 2
    sound = sum(c.shape[1] for c in stream) / model.sr
    after = model.stats()
    assert before["steps"] < after["steps"]
    assert (after["live"], after["waiting"], after["calls"]) == (0, 0, 0)
    assert after["finished"] == before["finished"] + 1
    assert after["tokens"] - before["tokens"] >= len(stream.tokens[0])
    assert after["sound_seconds"] - before["sound_seconds"] == pytest.approx(sound)
    assert after["first_sound"]["count"] == before["first_sound"]["count"] + 1
    assert sum(after["real_time_factor"]["counts"]) == after["real_time_factor"]["count"]


def test_waiting_for_a_listener_is_no_step(model):
    stream = model.submit("Nobody takes what is said here. " * 20, seed=1, max_new_tokens=400, first_chunk=0.4)
    assert soon(lambda: not waits_for_nobody(model))
    stream.close()


def waits_for_nobody(model) -> bool:
    before = model.stats()["steps"]
    time.sleep(0.3)
    return model.stats()["steps"] > before


# ---- many ----------------------------------------------------------------------------------------


def resident() -> float:
    """MB of memory this process holds, behind what the C library keeps of what was freed."""
    gc.collect()
    give_back_memory()
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


@pytest.mark.kernels
@pytest.mark.parametrize(
    ("device", "count"),
    [("cpu", 120), pytest.param("cpu", 1000, marks=pytest.mark.slow), pytest.param(*MLX.values, 120, marks=MLX.marks)],
    indirect=["device"], scope="module",
)  # fmt: skip
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_random_arrivals_and_cancellations(count, llama):
    """None is lost or mixed up, and no memory is kept."""
    torch.set_num_threads(1)  # a tiny network on more of them waits for them
    chance, kinds = random.Random(5), 12
    alone = [tokens_of(llama, [r])[0] for r in mixed(llama.config, kinds)]
    engine, leaving, calls, level = Steps(engine_of(llama)), [], [], 0.0
    for i in range(count):
        stop = threading.Event()
        kind = chance.randrange(kinds)
        r = mixed(llama.config, kinds)[kind]
        calls.append((kind, r, engine.submit(r, cancel=stop), stop))
        if chance.random() < 0.2:
            leaving.append(stop)
        engine.step(chance.randrange(12))
        if leaving and chance.random() < 0.3:
            leaving.pop(0).set()
        if i == min(100, count // 2):
            level = resident()
    for stop in leaving:
        stop.set()
    engine.finish()
    assert all(call.done for _, _, call, _ in calls)
    for kind, r, call, stop in calls:
        if isinstance(call.error, Cancelled):
            assert stop.is_set()
            assert r.tokens == alone[kind][: len(r.tokens)] or 6562 in r.tokens
        else:
            assert r.tokens == alone[kind]
    stats = engine.engine.stats()
    assert stats["finished"] + stats["cancelled"] == count
    assert stats["cancelled"] > count // 20
    assert resident() - level < 20
