"""What torch would meet on MPS, found without one: every operation of a tiny model's pipeline by torch's own table, and
the networks once more on tensors that only claim to be on MPS, so that the branches taken are those of MPS."""

import numpy as np
import pytest
import torch
from mps_table import TABLE, Recorder, runs_on_mps, table
from replay import no_gpu

from chatterbox_opt import EngineOptions, OptimizedChatterboxTTS, OptimizedChatterboxTurboTTS
from chatterbox_opt.config import tiny
from chatterbox_opt.engine.cache import Prefill, StaticKVCache, empty_kv
from chatterbox_opt.engine.mel import MelRunner
from chatterbox_opt.engine.slots import Slots
from chatterbox_opt.engine.tokens import TokenRunner
from chatterbox_opt.models.campplus import Campplus
from chatterbox_opt.models.flow import Flow
from chatterbox_opt.models.hift import Hift
from chatterbox_opt.models.t3 import T3
from chatterbox_opt.models.voice_encoder import VoiceEncoder

EXACT = EngineOptions.exact()

pytestmark = pytest.mark.skipif(not TABLE.is_file(), reason=f"this torch has no {TABLE.name}")

# What a CPU has in the place of what MPS takes.
OF_A_CPU = {
    "_scaled_dot_product_flash_attention_for_cpu": "_scaled_dot_product_attention_math_for_mps",
    "mkldnn_rnn_layer": "_lstm_mps",
}


@pytest.mark.parametrize(("name", "there"), [("add.Tensor", True), ("addmm", True), ("lstm_mps_backward", True),
                                             ("mkldnn_linear", False), ("_weight_int4pack_mm_for_cpu", False)])
def test_the_table_is_read(name, there):
    assert runs_on_mps(name) == there


@pytest.mark.parametrize("door", [OptimizedChatterboxTTS, OptimizedChatterboxTurboTTS])
def test_every_operation_of_the_pipeline_has_a_kernel_on_mps(door):
    model, recorder = door.from_random(engine=EXACT), Recorder()
    recording = 0.1 * np.random.default_rng(0).standard_normal(24_000 * 6).astype(np.float32)
    step = model.pipeline.engine.step

    def recorded() -> bool:  # of whatever thread
        with recorder:
            return step()

    model.pipeline.engine.step = recorded
    with recorder:
        voice = model.prepare_voice(recording, sample_rate=24_000)
    model.generate("Hello there.", voice=voice, seed=1, max_new_tokens=12, top_p=0.9)
    list(model.generate_stream("Hello there.", voice=voice, seed=1, max_new_tokens=40, first_chunk=0.4))
    assert len(recorder.seen) > 100
    assert recorder.not_on_mps - OF_A_CPU.keys() == set()
    assert all(runs_on_mps(name) for name in OF_A_CPU.values() if name in table())


def networks(family: str):
    """(what it is, a run of it) with tensors where new ones are made."""
    config = tiny(family)
    t3_config, frames = config.t3, 24
    runner = TokenRunner(T3(t3_config), EXACT)
    rows = 1 if t3_config.is_gpt else 2
    runner._use(Slots(1, rows, t3_config, runner.device), StaticKVCache(empty_kv(t3_config, rows, 256, runner.device,
                                                                                 runner.dtype)))
    emotion = None if t3_config.is_gpt else torch.zeros(1, 1, 1)

    def prompt():
        x = runner.t3.voice_prefix(torch.zeros(1, 256), torch.zeros(1, t3_config.prompt_tokens, dtype=torch.long), emotion)
        runner.t3(x, torch.arange(x.shape[1])[None], Prefill(runner.cache.kv[:, :, :1], 0))

    yield "prompt", prompt
    for sorting in (False, True):
        yield "step", lambda s=sorting: runner.step._captured_step(1, rows, 256, s)
    mel = MelRunner(Flow(config.flow), EXACT)

    def flow():
        ids, counts = torch.zeros(2, 12, dtype=torch.long), torch.full((2,), 10)
        known = mel.encode(ids, torch.zeros(2, frames, 80), torch.zeros(2, 192), counts, full=False)
        span, times = mel.schedule(2)
        mel.flow.euler(torch.zeros(2, frames, 80), times[0], span[1] - span[0], *known, False)

    yield "flow", flow
    hift = Hift(config.hift)
    harmonics = config.hift.harmonics + 1
    yield "sound", lambda: hift(torch.zeros(1, 80, 9), torch.zeros(1, harmonics, 1), torch.zeros(1, harmonics, 9 * 480))
    voice, xvector = VoiceEncoder(config.voice_encoder), Campplus(config.campplus)
    yield "voice", lambda: voice(torch.zeros(2, 160, config.voice_encoder.n_mels))
    yield "x-vector", lambda: xvector(torch.zeros(1, 300, 80))


@pytest.mark.parametrize("family", ["tts", "turbo"])
def test_networks_on_mps_meet_neither_doubles_nor_complex_products(family):
    """Metal has no double; complex products are slow there."""
    met = set()
    with no_gpu("mps"):
        for name, run in networks(family):
            with Recorder("mps") as recorder:
                run()
            assert recorder.seen, name
            met |= set(recorder.seen)
            assert recorder.with_type(torch.float64, torch.complex128) == set(), name
            assert recorder.with_type(torch.complex64) == set(), name
            assert recorder.not_on_mps == set(), name
    assert len(met) > 50


def test_the_guard_sees_a_double_and_a_complex_product():
    with no_gpu("mps"), Recorder("mps") as recorder:
        torch.view_as_complex(torch.zeros(3, 2)) * torch.zeros(3, dtype=torch.complex64)
        torch.zeros(3).double()
    assert "mul.Tensor" in recorder.with_type(torch.complex64)
    assert recorder.with_type(torch.float64) == {"_to_copy"}
