"""Threads that compute: on how many cores, and that none keeps OpenMP workers, which would slow down the next."""

import threading
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from threads import in_threads, soon

from chatterbox_opt import OptimizedChatterboxTTS, OptimizedChatterboxVC, openmp
from chatterbox_opt.align import WhisperAligner
from chatterbox_opt.audio.io import pcm16, read
from chatterbox_opt.computing import computing
from chatterbox_opt.engine.workers import Workers
from chatterbox_opt.listening import Listener
from chatterbox_opt.openmp import can_choose_cores, on_cores, product_cores, use_cores
from chatterbox_opt.packing import pack
from chatterbox_opt.scores import Take, VoiceLikeness
from chatterbox_opt.voice import Conditionals, T3Cond
from chatterbox_opt.weights.random_init import write_checkpoint

pytestmark = pytest.mark.skipif(not can_choose_cores(), reason="no GNU OpenMP in this torch")

TOKENS = torch.arange(60)
CPU = torch.device("cpu")
FEATURES = torch.zeros(1, 500, 80)  # 10 s


def others() -> set[int]:
    """Returns the ids of this process's threads that are not Python's."""
    known = {thread.native_id for thread in threading.enumerate()}
    return {int(task.name) for task in Path("/proc/self/task").iterdir()} - known


def left_by(work) -> int:
    """Returns how many workers the work leaves behind in a thread of its own, which may use two cores."""
    found = []

    def measure():
        use_cores(2)
        before = others()
        work()
        left = lambda: others() - before  # noqa: E731
        soon(lambda: not left(), 1)  # a thread that Python has joined may not be gone yet
        found.append(len(left()))

    in_threads(measure)
    return found[0]


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("voice") / "voice.wav"
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 180 * np.arange(48_000) / 24_000), 24_000)
    return path


def listener() -> Listener:
    """Returns one whose Whisper hears nothing, without starting threads of its own."""
    found = object.__new__(Listener)
    found.language, found.model = "en", SimpleNamespace(transcribe=lambda *_, **how: ([], None))
    return found


def aligner() -> WhisperAligner:
    """The same of an aligner."""
    found = object.__new__(WhisperAligner)
    found.model, found.tokenizer = SimpleNamespace(max_length=448), SimpleNamespace(encode=lambda text: [0])
    found._times = lambda heard, tokens: (np.arange(len(tokens)), len(tokens))
    return found


@pytest.fixture(scope="module")
def mini():
    return OptimizedChatterboxTTS.from_mini()


@pytest.fixture(scope="module")
def clones():
    return OptimizedChatterboxTTS.from_random(size="tiny", seed=0)


def test_ordinary_work_leaves_some():
    assert left_by(lambda: torch.ones(1 << 22).sin()) > 0


def test_loading_warming_up_and_speaking(mini):
    for work in (
        OptimizedChatterboxTTS.from_mini,
        lambda: mini.warmup(2),
        lambda: mini.generate_tokens("Hello there.", seed=0, max_new_tokens=9),
        lambda: mini.generate("Hello there.", seed=0, max_new_tokens=9),
        lambda: mini.tokens_to_wav(TOKENS, seed=0),
    ):
        assert left_by(work) == 0


def test_voices_their_scores_and_watermarks(clones, recording):
    sound = np.random.default_rng(0).normal(0, 0.1, 96_000).astype(np.float32)
    voice = clones.prepare_voice(recording)
    take = Take("a", "a", TOKENS, "eos", 0, voice, 24_000, torch.from_numpy(sound)[None])
    converter = OptimizedChatterboxVC.from_random(size="tiny", seed=0)
    for work in (
        lambda: clones.prepare_voice(np.sin(np.arange(48_000) / 20), sample_rate=24_000),
        lambda: VoiceLikeness(clones)(take),
        lambda: clones.watermarker.apply_watermark(sound, 24_000),
        lambda: clones.watermarker.get_watermark(sound, 24_000),
        lambda: converter.generate(recording, seed=0),
    ):
        assert left_by(work) == 0


def test_sound_that_is_read_heard_and_sent(recording, tmp_path):
    wave, voice = torch.full((1, 240_000), 0.1), Conditionals(T3Cond(torch.zeros(1, 256)), {"prompt_feat": FEATURES})
    works = (
        lambda: read(recording),
        lambda: pcm16(wave),
        lambda: voice.save(tmp_path / "voice.pt"),
        lambda: listener().hear(wave, 24_000),
        lambda: aligner()(wave[0].numpy(), 24_000, "Hello there."),
    )
    assert [left_by(work) for work in works] == [0] * len(works)


def test_checkpoints_that_are_written(tmp_path):
    checkpoint, seeds = write_checkpoint(tmp_path / "random"), count()
    works = (
        lambda: write_checkpoint(tmp_path / f"random {next(seeds)}"),
        lambda: pack(checkpoint, tmp_path / "packed", quantize="int8"),
    )
    assert [left_by(work) for work in works] == [0] * len(works)


def test_threads_that_render_on_several_cores():
    workers, sines = Workers(CPU, 2), lambda size: torch.ones(size).sin()
    try:
        assert left_by(lambda: workers.start(sines, 1 << 22, cores=2).result()) == 0
    finally:
        workers.close()


@pytest.mark.skipif(product_cores() is None, reason="no MKL in this torch")
def test_products_too_are_computed_on_as_many_cores_as_a_thread_has():
    """MKL goes by torch.set_num_threads() of any thread, once that was called."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with on_cores(1):
            assert product_cores() == 1
            with on_cores(2):
                assert (product_cores(), torch.get_num_threads()) == (2, 2)
            assert product_cores() == 1
        assert (product_cores(), torch.get_num_threads()) == (3, 3)
        assert in_threads(lambda: (use_cores(1), product_cores())[1]) == [1]
        torch.set_num_threads(2)
        assert product_cores() == 2, "what a program asks for later holds"
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(product_cores() is None, reason="no MKL in this torch")
def test_numpys_mkl_is_not_torchs(monkeypatch, tmp_path):
    """In an environment of conda's, NumPy's lies in a folder that sorts before torch's."""
    other = tmp_path / "libmkl_rt.so.2"
    other.touch()
    maps = f"7f00-7f01 r-xp 00000000 00:00 1 {other}\n" + Path("/proc/self/maps").read_text()
    numpys = SimpleNamespace(MKL_Set_Num_Threads_Local=None)
    load = openmp.ctypes.CDLL
    monkeypatch.setattr(openmp.Path, "read_text", lambda path: maps)
    monkeypatch.setattr(openmp.ctypes, "CDLL", lambda path: numpys if path == str(other) else load(path))
    assert openmp._loaded("libmkl")[0] is numpys
    assert openmp._mkl.__wrapped__() is not numpys


def test_without_these_libraries_nothing_is_chosen(monkeypatch):
    """macOS, Windows, and processors of other makers than MKL's."""
    monkeypatch.setattr(openmp, "_libraries", list)
    monkeypatch.setattr(openmp, "_mkl", lambda: None)
    before = torch.get_num_threads()
    with computing(CPU), on_cores(1):
        assert (product_cores(), torch.get_num_threads()) == (None, before)
