"""Captures that fail: the model goes on without them, warns once, and speaks the same."""

from __future__ import annotations

import logging

import pytest
import torch
from replay import Replay
from t3_pairs import random_t3
from token_runs import EXACT, draw, engine_of, request, tokens_of

from chatterbox_opt.config import tiny
from chatterbox_opt.engine.agreement import distance
from chatterbox_opt.engine.cache import StaticKVCache, empty_kv
from chatterbox_opt.engine.graphs import Trial
from chatterbox_opt.engine.mel import MelJob, MelRunner
from chatterbox_opt.engine.noise import RequestNoise
from chatterbox_opt.engine.slots import Slots
from chatterbox_opt.engine.wav import WavRunner
from chatterbox_opt.models.flow import Flow
from chatterbox_opt.models.hift import Hift

CPU = torch.device("cpu")
ON_TRIAL = EXACT.replace(trial="here")


class Raising(Replay):
    def _record(self, key, run, again):
        again(run)
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


class Wrong(Replay):
    """Returns slightly wrong numbers, like a graph that reads stale memory."""

    def _replay(self, key):
        result = super()._replay(key)
        for t in result if isinstance(result, tuple) else (result,):
            if isinstance(t, torch.Tensor) and t.is_floating_point():
                t.mul_(1.5)
        return result


class Idle(Replay):
    """Writes nothing, so that the results of the last run remain."""

    def _replay(self, key):
        return self._results[key]


class Slow(Replay):
    def _seconds(self, run):
        run()
        self.asked = getattr(self, "asked", 0) + 1
        return 2.0 if self.asked % 2 else 1.0  # replay and twin by turns


class Full(Replay):
    """Has memory for small batches only."""

    def _record(self, key, run, again):
        if key[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        super()._record(key, run, again)


FAILURES = [
    (Raising, "RuntimeError: operation not permitted"), (Wrong, "differs by"), (Idle, "differs by"), (Slow, "takes"),
]  # fmt: skip


def on_trial(t3, kind):
    engine = engine_of(t3, ON_TRIAL)
    engine.tokens.step.captured = kind.of(engine.tokens.step.captured)
    return engine


def requests(config, count=3):
    return [request(config, seed=i, text_seed=i, max_new_tokens=12 + 3 * i) for i in range(count)]


@pytest.mark.parametrize(("kind", "why"), FAILURES)
@pytest.mark.parametrize("warm", [True, False])
def test_a_step_that_fails_its_trial_runs_uncaptured(kind, why, warm, caplog):
    t3 = random_t3("tts")
    wanted = tokens_of(t3, requests(t3.config))
    engine = on_trial(t3, kind)
    if warm:
        engine.tokens.warmup(2)
    assert [r.tokens for r in draw(engine, requests(t3.config))] == wanted
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "capturing the step at" in record.getMessage()
    assert why in record.getMessage()
    assert "\n" not in record.getMessage()
    assert not engine.tokens.step.captured.keys


@pytest.mark.parametrize("family", ["tts", "turbo"])
@pytest.mark.parametrize("warm", [True, False])
def test_a_correct_capture_is_used_without_a_warning(family, warm, caplog):
    t3 = random_t3(family)
    wanted = tokens_of(t3, requests(t3.config))
    engine = on_trial(t3, Replay)
    engine.tokens.step.captured._seconds = lambda run: run() and 1.0
    if warm:
        engine.tokens.warmup(4)
    assert [r.tokens for r in draw(engine, requests(t3.config))] == wanted
    assert engine.tokens.step.captured.keys
    assert not caplog.records


def test_steps_without_memory_for_a_capture_run_uncaptured(caplog):
    t3 = random_t3("tts")
    wanted = tokens_of(t3, requests(t3.config))
    engine = on_trial(t3, Full)
    engine.tokens.step.captured._seconds = lambda run: run() and 1.0
    engine.tokens.warmup(4)
    assert [r.tokens for r in draw(engine, requests(t3.config))] == wanted
    (record,) = caplog.records
    assert "out of memory while capturing the step" in record.getMessage()
    assert {n for n, *_ in engine.tokens.step.captured.keys} == {1, 2}, "what there was room for is used"


class CacheReader(Replay):
    """Keeps what the cache holds, before a replay, at the position that it writes."""

    cache = slots = None
    found = ()

    def _replay(self, key):
        self.found += (float(self.cache.kv[:, :, 0, :, self.slots.position[0]].abs().max()),)
        return super()._replay(key)


@torch.inference_mode()
@pytest.mark.parametrize("position", [40, 255])
def test_a_trial_overwrites_only_what_its_twin_wrote(position, llama, caplog):
    """Also at the last position, after which there is no memory."""
    runner = engine_of(llama, ON_TRIAL).tokens
    cache = StaticKVCache(empty_kv(llama.config, 2, 256, CPU, torch.float32))
    reader = runner.step.captured = CacheReader.of(runner.step.captured)
    reader._seconds = lambda run: (run(), 1.0)[1]
    runner._use(Slots(1, 2, llama.config, CPU), cache)
    runner.step._pretend(1, 2, 256, False)
    runner.slots.position.fill_(position)
    reader.cache, reader.slots = cache, runner.slots
    kept, state = cache.kv.clone(), [t.clone() for t in (runner.slots.token, runner.slots.step, runner.slots.seen)]
    runner.step.capture((1, 2, 256, False))
    assert reader.keys
    assert reader.found[0] == 0
    kept[:, :, :, :, position] = cache.kv[:, :, :, :, position]
    assert torch.equal(cache.kv, kept), "the row that comes next is all that was written"
    assert runner.slots.position.tolist() == [position] * 2
    after = (runner.slots.token, runner.slots.step, runner.slots.seen)
    assert all(torch.equal(a, b) for a, b in zip(after, state))


@pytest.mark.parametrize("fault", ["raises", "wrong"])
def test_torch_compile_is_on_trial_too(fault, llama, monkeypatch, caplog):
    def compiled(run, **how):
        def call():
            if fault == "raises":
                raise RuntimeError("no compiler was found")
            token, logits = run()
            return token, 2 * logits

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    wanted = tokens_of(llama, requests(llama.config))
    options = ON_TRIAL.replace(compile="reduce-overhead")
    assert [r.tokens for r in draw(engine_of(llama, options), requests(llama.config))] == wanted
    (record,) = caplog.records
    assert ("no compiler was found" if fault == "raises" else "differs by") in record.getMessage()


def test_without_a_trial_a_failing_capture_is_raised():
    t3 = random_t3("tts")
    engine = engine_of(t3, EXACT)
    engine.tokens.step.captured = Raising.of(engine.tokens.step.captured)
    with pytest.raises(RuntimeError, match="not permitted"):
        draw(engine, requests(t3.config, 1))


def networks():
    torch.manual_seed(0)
    return Flow(tiny("tts").flow).eval(), Hift(tiny("tts").hift).eval()


def sound(mel: MelRunner, wav: WavRunner):
    generator = torch.Generator().manual_seed(0)
    voice = {"prompt_token": torch.arange(20)[None], "prompt_feat": torch.randn(1, 40, 80, generator=generator) - 5,
             "embedding": torch.randn(1, 192, generator=generator)}  # fmt: skip
    (made,) = mel.render([MelJob(torch.arange(40), voice, RequestNoise(CPU, 1))], 2)
    return wav.render([made], [RequestNoise(CPU, 2)])[0]


def test_a_graph_without_memory_for_its_inputs_is_left_out(monkeypatch, caplog):
    def full(key):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    flow, hift = networks()
    wanted = sound(MelRunner(flow, EXACT), WavRunner(hift, EXACT))
    mel, wav = MelRunner(flow, ON_TRIAL), WavRunner(hift, ON_TRIAL)
    mel.graphs.captured, wav.captured = (Replay.of(c) for c in (mel.graphs.captured, wav.captured))
    monkeypatch.setattr(mel.graphs, "_hold", full)
    monkeypatch.setattr(wav, "_example", full)
    for _ in range(2):
        got = sound(mel, wav)
        assert (got - wanted).norm() < 1e-2 * wanted.norm()
    messages = [record.getMessage().split(" at ")[0] for record in caplog.records]
    assert messages == [f"out of memory while capturing the {name}" for name in ("flow", "vocoder")]


@pytest.mark.parametrize("kind", [Raising, Wrong, Slow, Replay])
def test_flow_and_vocoder_run_uncaptured_after_a_failed_trial(kind, caplog):
    flow, hift = networks()
    wanted = sound(MelRunner(flow, EXACT), WavRunner(hift, EXACT))
    mel, wav = MelRunner(flow, ON_TRIAL), WavRunner(hift, ON_TRIAL)
    mel.graphs.captured, wav.captured = (kind.of(c) for c in (mel.graphs.captured, wav.captured))
    if kind is Replay:
        mel.graphs.captured._seconds = wav.captured._seconds = lambda run: (run(), 1.0)[1]
    got = sound(mel, wav)
    assert (got - wanted).norm() < 1e-2 * wanted.norm()
    messages = [record.getMessage() for record in caplog.records]
    assert [text.split(" at ")[0] for text in messages] == (
        [] if kind is Replay else ["capturing the flow", "capturing the vocoder"]
    )
    assert bool(wav.captured.keys) == (kind is Replay)


def test_trials_name_their_part():
    t3 = random_t3("tts")
    assert engine_of(t3, ON_TRIAL).tokens.step.captured.trial == Trial("step", torch.float32)
    assert engine_of(t3, EXACT).tokens.step.captured.trial is None
    assert not engine_of(t3, EXACT.replace(compile="reduce-overhead", captures=("flow",))).tokens.step.captured.on


def test_distance():
    a = torch.tensor([1.0, -torch.inf, 2.0])
    assert distance([a], [a]) == 0
    assert distance([a], [a.nan_to_num(neginf=0.0)]) == float("inf"), "a number where there was none"
    assert distance([torch.ones(4) * 1.01], [torch.ones(4)]) == pytest.approx(0.01, rel=1e-3)
    ids = torch.tensor([3])
    assert distance([a, ids], [a, ids + 1]) == float("inf")
    assert distance([a * 1.0001, ids], [a, ids + 1]) < 1e-3, "drawn between two that are all but equal"
    with pytest.raises(ValueError, match="came out"):
        distance([a], [a[:2]])
