"""What a warm-up captures, counted without a GPU: all that requests can use, and nothing else."""

from __future__ import annotations

import logging
from itertools import product

import pytest
import torch
from flow_pairs import random_flow
from replay import Replay
from token_runs import EXACT

from chatterbox_opt import OptimizedChatterboxTTS
from chatterbox_opt.config import tiny
from chatterbox_opt.engine import flow_graphs, wav
from chatterbox_opt.engine.captures import captured_parts, counts, in_words
from chatterbox_opt.engine.flow_graphs import sizes
from chatterbox_opt.engine.graphs import Captured, bucket
from chatterbox_opt.engine.mel import ROWS_AT_ONCE, MelRunner
from chatterbox_opt.engine.wav import SIZES, WavRunner
from chatterbox_opt.models.hift import Hift
from chatterbox_opt.options import EngineOptions

GPU_DEFAULTS = EXACT.replace(mel_bucket=EngineOptions.mel_bucket, wav_chunk=EngineOptions.wav_chunk)


@pytest.fixture(scope="module")
def flow():
    made = MelRunner(random_flow(), GPU_DEFAULTS)
    made.graphs.captured = Replay()
    return made


def vocoder(**changes):
    made = WavRunner(Hift(tiny("tts").hift).eval(), GPU_DEFAULTS.replace(**changes))
    made.captured = Replay()
    return made


@pytest.mark.parametrize("batch", [1, 2, 3, 16])
def test_shapes_of_the_flow_are_those_of_its_groups(batch, flow):
    ladder = sizes(GPU_DEFAULTS.mel_bucket)
    met = set()
    for count, size in product(range(1, batch + 1), ladder):
        for group in flow.groups([size] * count):
            met.add(flow.graphs.key(len(group), size))
    assert set(flow.graphs.shapes(batch)) == met
    assert len(flow.graphs.shapes(batch)) == len(met), "each once"


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("wav_chunk", [2000, 300])
def test_shapes_of_the_vocoder_are_those_of_its_groups(batch, wav_chunk):
    made, met = vocoder(wav_chunk=wav_chunk), set()

    def run(size, parts):
        met.add((bucket(len(parts)), size))
        return torch.zeros(len(parts), 480 * size)

    made._run = run
    lengths = [*SIZES, 65, *range(85, 800, 35), *(size - 1 for size in SIZES[:-1]), 4000]
    mels = {n: torch.zeros(80, n) for n in lengths}
    spectra = {n: torch.zeros(1, 120 * n + 1, 18) for n in lengths}
    for together in product(lengths, repeat=batch):
        made.decode([mels[n] for n in together], [spectra[n] for n in together])
    assert set(made.planned(batch)) == met


def test_the_size_of_a_warm_up(flow):
    """Graphs of a warm-up for one utterance and for 16, at the defaults of a GPU: docs/gpu.md has these numbers."""
    assert [len(flow.graphs.planned(batch)) for batch in (1, 16)] == [58, 246]
    assert [len(vocoder().planned(batch)) for batch in (1, 16)] == [11, 13]
    assert max(rows for rows, _ in flow.graphs.shapes(64)) == ROWS_AT_ONCE


@pytest.mark.parametrize("steps", [2, 10])
@torch.inference_mode()
def test_a_captured_step_of_the_flow_is_one_run_of_its_network(steps):
    """Whatever the number of steps: captures of whole solves would be ten times as large, and one per number."""
    made, runs = MelRunner(random_flow(), EXACT.replace(mel_bucket=50, flow_steps=steps)), []
    made.graphs.captured = Replay()
    made.flow.decoder.estimator.register_forward_pre_hook(lambda *_: runs.append(1))
    assert made.graphs.capture((1, 100))
    encode, step = (made.graphs.captured._graphs[key] for key in (("encode", 1, 100), ("step", 1, 100, False)))
    runs.clear()
    encode()
    assert not runs
    step()
    assert len(runs) == 1


def test_stats_count_captures(monkeypatch, caplog):
    """A dry run of mini's warm-up, with replays instead of graphs."""
    caplog.set_level(logging.DEBUG, "chatterbox_opt")
    monkeypatch.setattr(flow_graphs, "sizes", lambda step: (100, 200))
    monkeypatch.setattr(wav, "SIZES", (64,))
    model = OptimizedChatterboxTTS.from_mini("cpu", engine=EngineOptions(slots=2))
    assert model.stats()["captured"] == {}, "on a CPU"
    parts = model.pipeline.tokens.step, model.pipeline.mel.graphs, model.pipeline.wav
    for part in parts:
        part.captured = Replay()
    assert model.stats()["captured"] == {"step": 0, "flow": 0, "vocoder": 0}
    model.warmup(2)
    planned = [set(part.planned(2)) for part in parts]
    assert [set(part.captured.keys) for part in parts] == planned
    assert list(model.stats()["captured"].values()) == [len(keys) for keys in planned]
    assert f"warm-up for 2 utterances: flow: {len(planned[1])} captured" in caplog.text
    model.close()


def test_captures_in_words():
    made = Captured("cudagraph", torch.device("cpu"))
    made._graphs = dict.fromkeys("abc")
    assert in_words(made) == "3 captured"
    made.nodes = {"a": 120, "b": None, "c": 90}
    assert in_words(made) == "3 captured of 90 to 120 nodes"
    assert counts({"step": made}) == {"step": 3}
    assert captured_parts(None, None, None) == {}
