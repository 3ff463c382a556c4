"""What torch would meet on MPS, found without one: every operation of a tiny model's pipeline by torch's own table. The
branches taken are a CPU's: torch for Linux refuses tensors that only claim to be on MPS."""

import numpy as np
import pytest
import torch
from mps_table import TABLE, Recorder, runs_on_mps

from chatterbox_opt import EngineOptions, OptimizedChatterboxTTS, OptimizedChatterboxTurboTTS
from chatterbox_opt.engine.resolve import resolve
from chatterbox_opt.models import source

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


def test_an_operation_without_a_kernel_is_found():
    with Recorder() as recorder:
        torch.linalg.eigvals(torch.eye(2))
        torch.ones(2, dtype=torch.float64)
    assert "linalg_eig" in recorder.not_on_mps
    assert recorder.doubles


ON_MPS = resolve(EngineOptions(dtype="bfloat16", short_convs=False), torch.device("mps"))  # short_convs are a CPU's


@pytest.mark.parametrize("options", [EngineOptions.exact(), ON_MPS], ids=["exact", "defaults"])
@pytest.mark.parametrize("door", [OptimizedChatterboxTTS, OptimizedChatterboxTurboTTS])
def test_every_operation_of_the_pipeline_has_a_kernel_on_mps(door, options, monkeypatch):
    """And none gives float64, once the constants that are made on the CPU are there."""
    monkeypatch.setattr(source, "_summing", lambda x: torch.float32)  # as on MPS
    model = door.from_random(engine=options)

    def speak(seed: int) -> None:
        recording = 0.1 * np.random.default_rng(seed).standard_normal(24_000 * 6).astype(np.float32)
        with recorder:
            voice = model.prepare_voice(recording, sample_rate=24_000)
        model.generate("Hello there.", voice=voice, seed=1, max_new_tokens=12, top_p=0.9)
        list(model.generate_stream("Hello there.", voice=voice, seed=1, max_new_tokens=40, first_chunk=0.4))

    recorder, step = Recorder(), model.pipeline.engine.step

    def recorded() -> bool:  # of whatever thread
        with recorder:
            return step()

    model.pipeline.engine.step = recorded
    speak(0)
    everything, recorder = recorder, Recorder()
    speak(1)
    assert len(everything.seen) > 100
    assert everything.not_on_mps - OF_A_CPU.keys() == set()
    assert recorder.doubles == set()
    assert all(runs_on_mps(name) for name in OF_A_CPU.values())
