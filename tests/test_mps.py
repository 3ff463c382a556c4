"""MPS without a Mac: every operation of a tiny model's pipeline is looked up in torch's own table of kernels. Networks
get the operations for MPS, with tensors on the CPU, because torch for Linux refuses tensors on MPS."""

import dataclasses

import numpy as np
import pytest
import torch
from mps_table import TABLE, Recorder, runs_on_mps

from chatterbox_opt import EngineOptions, OptimizedChatterboxTTS, OptimizedChatterboxTurboTTS, voice_preparer
from chatterbox_opt.engine import mel, step, wav
from chatterbox_opt.engine.resolve import resolve
from chatterbox_opt.models.flow import FLOW_REFERENCE
from chatterbox_opt.models.hift import VOCODER_REFERENCE
from chatterbox_opt.models.layers import T3_REFERENCE
from chatterbox_opt.models.s3_tokenizer import memory

pytestmark = pytest.mark.skipif(not TABLE.is_file(), reason=f"this torch has no {TABLE.name}")

# Operations of the CPU, and those that MPS uses instead.
OF_A_CPU = {
    "_scaled_dot_product_flash_attention_for_cpu": "_scaled_dot_product_attention_math_for_mps",
    "mkldnn_rnn_layer": "_lstm_mps",
}


@pytest.mark.parametrize(("name", "there"), [("add.Tensor", True), ("addmm", True), ("lstm_mps_backward", True),
                                             ("mkldnn_linear", False), ("_weight_int4pack_mm_for_cpu", False)])
def test_the_table_is_read(name, there):
    assert runs_on_mps(name) == there


# an operation -> one that is composed of it; newer versions of torch have some of them on MPS
COMPOSED = {"linalg_ldl_factor_ex": torch.linalg.ldl_factor, "linalg_matrix_exp": torch.matrix_exp}


@pytest.mark.parametrize("inference", [False, True])
def test_an_operation_without_a_kernel_is_found(inference):
    """Also inside a composed one, which inference mode does not split up."""
    missing, composed = next((name, call) for name, call in COMPOSED.items() if not runs_on_mps(name))
    with torch.inference_mode(inference), Recorder() as recorder:
        composed(torch.eye(2, dtype=torch.float64))
    assert recorder.not_on_mps == {missing}
    assert missing in recorder.doubles


ON_MPS = resolve(EngineOptions(dtype="bfloat16"), torch.device("mps"))


@pytest.fixture
def mps_operations(monkeypatch):
    """The operations that networks get on MPS from engine/operations.py and voice_preparer.py."""
    vocoder = dataclasses.replace(VOCODER_REFERENCE, phase_dtype=torch.float32)
    monkeypatch.setattr(step, "t3_operations", lambda *_: T3_REFERENCE)
    monkeypatch.setattr(mel, "flow_operations", lambda *_: FLOW_REFERENCE)
    monkeypatch.setattr(wav, "vocoder_operations", lambda *_: vocoder)
    monkeypatch.setattr(voice_preparer, "memory_by_taps", memory)


@pytest.mark.parametrize("options", [EngineOptions.exact(), ON_MPS], ids=["exact", "defaults"])
@pytest.mark.parametrize("door", [OptimizedChatterboxTTS, OptimizedChatterboxTurboTTS])
def test_every_operation_of_the_pipeline_has_a_kernel_on_mps(door, options, mps_operations):
    """And none returns float64, once the constants are computed on the CPU."""
    model = door.from_random(engine=options)

    def speak(seed: int) -> None:
        recording = 0.1 * np.random.default_rng(seed).standard_normal(24_000 * 6).astype(np.float32)
        with recorder:
            heard = model.prepare_voice(recording, sample_rate=24_000)
        how = dict(voice=heard, seed=1, n_cfm_timesteps=2)  # every step of the flow has the same operations
        model.generate("Hello there.", max_new_tokens=12, top_p=0.9, **how)
        list(model.generate_stream("Hello there.", max_new_tokens=40, first_chunk=0.4, **how))

    def record(owner, name: str) -> None:  # on whatever thread
        work = getattr(owner, name)

        def recorded(*args, **how):
            with recorder:
                return work(*args, **how)

        setattr(owner, name, recorded)

    recorder, engine = Recorder(), model.pipeline.engine
    record(engine, "step")
    for runner, names in ((engine.renderer.mel, ("begin", "advance")), (engine.renderer.wav, ("render", "decode"))):
        for name in names:
            record(runner, name)
    speak(0)
    everything, recorder = recorder, Recorder()
    speak(1)
    assert len(everything.seen) > 100
    assert {"convolution", "_fft_r2c"} <= everything.seen, "the vocoder and the voice were walked too"
    assert everything.not_on_mps - OF_A_CPU.keys() == set()
    assert recorder.doubles == set()
    assert all(runs_on_mps(name) for name in OF_A_CPU.values())
