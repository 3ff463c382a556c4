"""The small trained model speaks, and approximations are judged by their word error rate: sentences outside of its
training set, transcribed by Whisper tiny.en."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import metrics
import pytest
import torch

from chatterbox_opt import EngineOptions, OptimizedChatterboxTTS
from chatterbox_opt.weights.files import MINI

ROOT = Path(__file__).parents[2]
FOX = "The quick brown fox jumps over the lazy dog."
TEXTS = [*metrics.SENTENCES[-8:-1], FOX]
FULL = dict(dtype="float32", s3gen_dtype="float32")
MODES = {
    "exact": EngineOptions.exact(),
    "bf16": EngineOptions(dtype="bfloat16", s3gen_dtype="bfloat16"),
    "int8": EngineOptions(quantize="int8", **FULL),
    "flow-int8": EngineOptions(flow_int8=True, **FULL),
    "batched": EngineOptions(),
}
WORDS = 0.35  # word error rate allowed; what each mode has over 50 sentences is in docs/quality.md
TWO_STEPS = 0.03  # word error rate allowed on top of that of ten
LIMIT_BYTES = 20_000_000


def spoken(mode: str, **how) -> list:
    model = OptimizedChatterboxTTS.from_mini(engine=MODES[mode])
    seeds = list(range(4 if mode == "bf16" else len(TEXTS)))  # most processors emulate bf16, at a tenth of the speed
    groups = [seeds] if mode == "batched" else [[i] for i in seeds]
    return [s for g in groups for s in model.speak(model.jobs([TEXTS[i] for i in g], seeds=g), **how)]


def errors(speech: list, listener: metrics.Listener) -> float:
    return metrics.word_error_rate([(t, listener.hear(s.wav[0], 24_000)) for t, s in zip(TEXTS, speech)])


@pytest.mark.parametrize(("mode", "steps"), [("exact", None), ("bf16", None), ("int8", None), ("batched", None),
                                             ("flow-int8", None), ("exact", 6)])
def test_words_are_heard(mode, steps, listener):
    speech = spoken(mode, n_cfm_timesteps=steps)
    for text, said in zip(TEXTS, speech):
        assert torch.isfinite(said.wav).all()
        assert said.wav.abs().max() < 0.99  # no clipping
        assert said.stops == ["eos"]
        assert len(text.split()) * 0.15 < said.wav.shape[1] / 24_000 < len(text.split()) * 0.8
    assert errors(speech, listener) <= WORDS


def test_words_are_heard_of_the_fast_preset(listener):
    """The decoder of two steps; a T3 as small as this is not quantised."""
    model = OptimizedChatterboxTTS.from_mini(preset="fast")
    assert (model.options.quantize, model.options.flow_steps, model.config.flow.meanflow) == (None, None, True)
    speech = [s for i, t in enumerate(TEXTS) for s in model.speak(model.jobs([t], seeds=i))]
    assert all(s.stops == ["eos"] for s in speech)
    assert errors(speech, listener) <= WORDS


@pytest.mark.slow
def test_two_steps_say_as_many_words_as_ten(listener):
    """With the same tokens, drawn once."""
    texts = metrics.sentences()
    assert len(texts) == 50
    ten, two = (OptimizedChatterboxTTS.from_mini(decoder=d, enable_watermark=False) for d in ("standard", "meanflow"))
    tokens = [ten.generate_tokens(text, seed=i) for i, text in enumerate(texts)]

    def rate(model):
        waves = [model.tokens_to_wav(said, seed=i) for i, said in enumerate(tokens)]
        return metrics.word_error_rate([(t, listener.hear(w[0], 24_000)) for t, w in zip(texts, waves)])

    assert rate(two) <= rate(ten) + TWO_STEPS


def test_words_are_heard_in_chunks(listener):
    """With a short first chunk, so that a sentence has at least two seams."""
    model = OptimizedChatterboxTTS.from_mini()
    streams = [list(model.generate_stream(t, seed=i, first_chunk=0.6)) for i, t in enumerate(TEXTS)]
    assert sum(len(chunks) > 2 for chunks in streams) > len(TEXTS) / 2
    waves = [torch.cat(chunks, 1) for chunks in streams]
    assert metrics.word_error_rate([(t, listener.hear(w[0], 24_000)) for t, w in zip(TEXTS, waves)]) <= WORDS


def test_the_gate_can_close(listener):
    """A model with a part of its training removed is not understood."""
    model = OptimizedChatterboxTTS.from_mini(enable_watermark=False)
    with torch.no_grad():
        for parameter in model.s3gen.flow.encoder_proj.parameters():
            parameter.mul_(0.2)
    assert errors(model.speak(model.jobs(TEXTS, seeds=0)), listener) > 2 * WORDS


def test_a_seed_repeats():
    model = OptimizedChatterboxTTS.from_mini()
    first = model.generate(TEXTS[0], seed=3)
    assert torch.equal(first, model.generate(TEXTS[0], seed=3))
    assert not torch.equal(first, model.generate(TEXTS[0], seed=4))


def test_it_clones_nobody():
    model = OptimizedChatterboxTTS.from_mini()
    with pytest.raises(ValueError, match="own voice only"):
        model.prepare_voice(torch.zeros(48_000).numpy(), sample_rate=24_000)


def test_the_files_are_small_and_documented():
    names = {f.name for f in MINI.iterdir()}
    assert names == {
        "README.md", "conds.pt", "config.json", "s3gen.safetensors", "s3gen_meanflow.safetensors", "t3_cfg.safetensors",
        "tokenizer.json", "ve.safetensors",
    }
    assert sum(f.stat().st_size for f in MINI.iterdir()) <= LIMIT_BYTES


@pytest.mark.slow
def test_a_built_wheel_speaks(tmp_path):
    """From the wheel, not from the tree, and without a hub."""
    import soundfile

    pytest.importorskip("hatchling", reason="the build backend is not installed: pip install hatchling")
    pip = [sys.executable, "-m", "pip", "-q"]
    wheel = ["wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path / "dist", ROOT]
    subprocess.run([*pip, *wheel], check=True)
    (built,) = (tmp_path / "dist").glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", built], check=True)
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "HF_HUB_OFFLINE": "1"}
    where = [sys.executable, "-c", "import chatterbox_opt; print(chatterbox_opt.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout
    assert found.startswith(str(tmp_path / "site"))
    say = ["-m", "chatterbox_opt", "say", "--model", "mini", FOX, "-o", "fox.wav", "--seed", "1"]
    subprocess.run([sys.executable, *say], cwd=tmp_path, env=env, check=True)
    assert 1 < soundfile.info(tmp_path / "fox.wav").duration < 6
