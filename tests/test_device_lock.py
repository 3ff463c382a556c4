"""One thread at a time on a device that requires it, as MPS does; here the CPU is declared to be such a device."""

import threading
import time

import numpy as np
import pytest
from threads import in_threads

from chatterbox_opt import OptimizedChatterboxTTS, OptimizedChatterboxVC, device_lock
from chatterbox_opt.device_lock import FairLock
from chatterbox_opt.engine import workers

TEXT = "One sentence. Another one follows it. Here is the third of them. And this one is the last."
PAUSE = 0.002  # s that each operation is prolonged, so that others would overlap


class Visitors:
    """Wraps functions that use the device, and counts the threads inside at once."""

    def __init__(self) -> None:
        self.inside: list[int] = []
        self.most = 0

    def watch(self, owner: object, name: str) -> None:
        work = getattr(owner, name)

        def watched(*args, **how):
            self.inside.append(threading.get_ident())
            self.most = max(self.most, len(set(self.inside)))
            time.sleep(PAUSE)
            try:
                return work(*args, **how)
            finally:
                self.inside.remove(threading.get_ident())

        setattr(owner, name, watched)


def recording(seed: int) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(24_000).astype(np.float32)


@pytest.fixture
def visitors() -> Visitors:
    return Visitors()


@pytest.fixture
def models(visitors, monkeypatch):
    """Two models in one process, with their use of the device counted."""
    monkeypatch.setattr(workers, "can_choose_cores", lambda: False)  # one rendering thread, as on other devices
    speaker, converter = OptimizedChatterboxTTS.from_random(), OptimizedChatterboxVC.from_random()
    for model in (speaker, converter):
        visitors.watch(model.voices.tokenizer, "forward")
        visitors.watch(model.voices.speaker_encoder, "forward")
        visitors.watch(model.pipeline.mel, "advance")
        visitors.watch(model.pipeline.wav, "decode")
    visitors.watch(speaker.ve, "forward")
    visitors.watch(speaker.pipeline.tokens, "decode")
    visitors.watch(speaker.pipeline.tokens, "prefill")
    yield speaker, converter
    for model in (speaker, converter):
        model.close()


@pytest.mark.parametrize("several", [False, True], ids=["one thread", "several"])
def test_no_two_threads_are_on_such_a_device_at_once(several, models, visitors, monkeypatch):
    speaker, converter = models
    if not several:
        monkeypatch.setattr(device_lock, "ONE_THREAD", {"cpu"})
    in_threads(
        lambda: list(speaker.generate_stream(TEXT, seed=1, max_new_tokens=25, max_chars=30, first_chunk=0.4)),
        lambda: speaker.generate(TEXT, seed=2, max_new_tokens=25),
        lambda: [speaker.prepare_voice(recording(seed), sample_rate=24_000) for seed in range(8)],
        lambda: [speaker.prepare_voice(recording(seed), sample_rate=24_000) for seed in range(8, 16)],
        lambda: [converter.generate(recording(seed), sample_rate=24_000, seed=seed) for seed in range(3)],
        lambda: [converter.set_target_voice(recording(seed), sample_rate=24_000) for seed in range(16, 24)],
    )
    assert (visitors.most > 1) == several


def test_a_voice_is_prepared_while_a_long_text_is_spoken(models, monkeypatch):
    """And not after it, although the engine releases the lock only briefly."""
    speaker, _ = models
    monkeypatch.setattr(device_lock, "ONE_THREAD", {"cpu"})
    cancel, began = threading.Event(), threading.Event()

    def speak() -> None:
        stream = speaker.submit(TEXT * 20, seed=1, max_chars=30, cancel=cancel, progress=lambda *_: began.set())
        with pytest.raises(RuntimeError, match="cancelled"):
            list(stream)

    def prepare() -> None:
        assert began.wait(60)
        speaker.prepare_voice(recording(0), sample_rate=24_000)
        cancel.set()

    in_threads(speak, prepare)


def test_a_progress_callback_may_prepare_a_voice(models, monkeypatch):
    speaker, _ = models
    monkeypatch.setattr(device_lock, "ONE_THREAD", {"cpu"})
    voices = []

    def report(*_: int) -> None:
        voices.append(speaker.prepare_voice(recording(len(voices)), sample_rate=24_000))

    assert speaker.generate("Hello there.", seed=1, max_new_tokens=3, progress=report).numel()
    assert voices
    in_threads(lambda: speaker.prepare_voice(recording(99), sample_rate=24_000))  # the lock is free again


@pytest.mark.parametrize("how", ["generate", "warmup", "generate_stream"])
def test_a_callback_that_calls_a_model_which_speaks_for_others_is_refused(how, monkeypatch):
    """It would wait for a thread that waits for the device, on which the callback's own model works."""
    monkeypatch.setattr(device_lock, "ONE_THREAD", {"cpu"})
    one, busy = (OptimizedChatterboxTTS.from_random() for _ in range(2))
    begun, stop = threading.Event(), threading.Event()

    def call_the_other(*_: int) -> None:
        list(busy.warmup() or () if how == "warmup" else getattr(busy, how)("No."))

    def speak() -> None:
        with pytest.raises(RuntimeError, match="another was called"):
            one.generate("Hello.", seed=1, max_new_tokens=4, progress=call_the_other)
        stop.set()

    def other() -> None:
        with pytest.raises(RuntimeError, match="cancelled"):
            busy.generate(TEXT * 20, seed=1, max_chars=30, cancel=stop, progress=lambda *_: begun.set())

    threads = [threading.Thread(target=work, daemon=True) for work in (other, speak)]
    threads[0].start()
    assert begun.wait(20)
    threads[1].start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    one.close()
    busy.close()


def test_a_waiting_thread_comes_before_one_that_takes_the_lock_again():
    lock, order = FairLock(), []

    def wait() -> None:
        with lock:
            order.append("waiting")

    waiting = threading.Thread(target=wait)
    with lock:
        waiting.start()
        while not lock._next.locked():
            time.sleep(PAUSE)
    with lock:
        order.append("again")
    waiting.join()
    assert order == ["waiting", "again"]
