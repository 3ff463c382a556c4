"""A network is replaced while others speak, beside streams, and from inside a call."""

from __future__ import annotations

import dataclasses
import threading

import pytest
import torch
from safetensors.torch import load_file
from threads import soon

from chatterbox_opt import EngineOptions, OptimizedChatterboxTTS
from chatterbox_opt.calls import GenerateOptions
from chatterbox_opt.computing import computing
from chatterbox_opt.engine.request import Call
from chatterbox_opt.weights.random_init import write_checkpoint
from chatterbox_opt.whole_speech import WholeSpeech

PLAIN = dict(enable_watermark=False)
T3_FILE = "t3_cfg.safetensors"
TOKENS = torch.arange(30) * 97 % 6561
LONG = "This is one sentence of several. " * 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders, which differ in all weights and have the same voice."""
    first, tuned = (write_checkpoint(tmp_path_factory.mktemp("tts"), "tts", "tiny", seed=seed) for seed in (0, 1))
    (tuned / "conds.pt").write_bytes((first / "conds.pt").read_bytes())
    return first, tuned


def said(model) -> list[int]:
    return model.generate_tokens("Hello there.", seed=4, max_new_tokens=24).tolist()


def test_while_others_speak(folders):
    """Those under way end with the old weights, those that come after have the new ones, and none fails."""
    first, tuned = folders
    model = OptimizedChatterboxTTS.from_local(first, "cpu", **PLAIN)
    old, state = said(model), load_file(tuned / T3_FILE)
    new = said(OptimizedChatterboxTTS.from_local(first, "cpu", t3_file=str(tuned / T3_FILE), **PLAIN))
    heard, failed = [], []

    def speak():
        try:
            heard.extend(said(model) for _ in range(6))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=speak) for _ in range(3)]
    for thread in threads:
        thread.start()
    model.t3.load_state_dict(state)
    for thread in threads:
        thread.join()
    assert not failed
    assert len(heard) == 18
    assert all(tokens in (old, new) for tokens in heard)
    assert said(model) == new


def test_calls_that_have_begun_end_with_the_old_networks(folders):
    """Whatever is left of them: pieces that wait, sound that is not begun."""
    first, tuned = folders
    how = dict(engine=EngineOptions(slots=1), **PLAIN)
    model, old, new = (OptimizedChatterboxTTS.from_local(folder, "cpu", **how) for folder in (first, first, tuned))
    wanted = old.generate(LONG, seed=3, max_new_tokens=12)
    pipeline, (job,) = model.pipeline, model.jobs([LONG], seeds=[3], max_new_tokens=12)
    utterances = pipeline.utterances(job, GenerateOptions())
    for utterance, noise in zip(utterances, pipeline.noises(3, len(utterances), alone=False), strict=True):
        utterance.noise = noise
    sink = WholeSpeech([utterances])
    pipeline.engine._submit(Call(utterances, sink))
    with computing(pipeline.device):
        pipeline.engine.step()  # of its several pieces one is begun, and nobody drives
    model.t3 = new.t3
    assert torch.allclose(sink.waves[0], wanted, atol=1e-4)
    assert said(model) == said(new)


def test_beside_a_stream(folders, monkeypatch):
    """Its listener is waited for, but not for ever; a mel and a wave can be made between two of its chunks."""
    first, tuned = folders
    model = OptimizedChatterboxTTS.from_local(first, "cpu", **PLAIN)
    how = dict(seed=3, first_chunk=0.4, max_new_tokens=150)
    whole = [chunk.clone() for chunk in model.generate_stream(LONG, **how)]
    stream = model.generate_stream(LONG, **how)
    taken = [next(stream).clone()]
    mel = model.s3gen.flow_inference(TOKENS, ref_dict=model.conds.gen, finalize=True)
    assert model.s3gen.hift_inference(mel)[0].shape == (1, 480 * mel.shape[2])
    monkeypatch.setattr("chatterbox_opt.engine.place.PATIENCE", 0.5)
    with pytest.raises(RuntimeError, match="listener takes no chunks"):
        model.t3.load_state_dict(load_file(tuned / T3_FILE))
    monkeypatch.setattr("chatterbox_opt.engine.place.PATIENCE", 60)
    loader = threading.Thread(target=lambda: model.t3.load_state_dict(load_file(tuned / T3_FILE)))
    loader.start()
    taken += [chunk.clone() for chunk in stream]
    loader.join(60)
    assert not loader.is_alive()
    assert torch.allclose(torch.cat(taken, 1), torch.cat(whole, 1), atol=1e-4)
    new = OptimizedChatterboxTTS.from_local(first, "cpu", t3_file=str(tuned / T3_FILE), **PLAIN)
    assert said(model) == said(new)


def test_a_callback_cannot_load_what_it_waits_for(folders):
    model = OptimizedChatterboxTTS.from_local(folders[0], "cpu", **PLAIN)
    state = load_file(folders[1] / T3_FILE)
    with pytest.raises(RuntimeError, match="wait for itself"):
        model.generate("Hello.", max_new_tokens=9, progress=lambda drawn, most: model.t3.load_state_dict(state))
    model.close()
    with pytest.raises(RuntimeError, match="closed"):
        model.t3.load_state_dict(state)


def test_what_waits_while_the_vocabulary_shrinks_is_refused(folders):
    """On a GPU an id that lies outside it would be an assertion of the device, which ends the process's use of it."""
    model = OptimizedChatterboxTTS.from_local(folders[0], "cpu", **PLAIN)
    engine, failed = model.pipeline.engine, []
    most = int(model.pipeline.text_ids("Hello there.").max())

    def speak():
        try:
            said(model)
        except ValueError as error:
            failed.append(str(error))

    with engine.idle():
        thread = threading.Thread(target=speak)
        thread.start()
        assert soon(lambda: engine.inbox)
        engine.tokens.config = dataclasses.replace(engine.tokens.config, text_vocab=most)
    thread.join(20)
    assert ["outside this vocabulary" in message for message in failed] == [True]
    assert not engine.calls
