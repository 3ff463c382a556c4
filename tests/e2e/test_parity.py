"""Whole calls against the real chatterbox-tts on a tiny checkpoint: equal tokens, sound within 1e-3 of its peak."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import upstream_tiny
from conftest import NEEDS_UPSTREAM

import chatterbox_opt
from chatterbox_opt import EngineOptions
from chatterbox_opt.config import tiny
from chatterbox_opt.weights.files import MINI
from chatterbox_opt.weights.random_init import write_checkpoint

pytestmark = pytest.mark.kernels
pytest.importorskip("chatterbox", reason=NEEDS_UPSTREAM)
EXACT = dict(engine=EngineOptions.exact(), enable_watermark=False)
LIMIT = 72  # tokens; upstream's own limit of 1000 is written into its generate()


def stop_after(model, limit: int = LIMIT) -> None:
    """Limits upstream's loop from outside: `generate` always asks for 1000 tokens."""
    inference = model.t3.inference

    def bounded(**how):
        how["max_new_tokens"] = limit
        return inference(**how)

    model.t3.inference = bounded
    turbo = model.t3.inference_turbo
    model.t3.inference_turbo = lambda **how: turbo(**how, max_gen_len=limit - 1)


def folder_of(tmp_path_factory, family: str):
    folder = tmp_path_factory.mktemp(family)
    write_checkpoint(folder, family, "tiny", seed=0)
    return folder


@pytest.fixture(scope="module")
def english(tmp_path_factory):
    folder = folder_of(tmp_path_factory, "tts")
    upstream = upstream_tiny.load(folder, "tts")
    stop_after(upstream)
    return upstream, chatterbox_opt.OptimizedChatterboxTTS.from_local(folder, "cpu", **EXACT)


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory):
    folder = folder_of(tmp_path_factory, "mtl")
    upstream = upstream_tiny.load(folder, "mtl")
    stop_after(upstream)
    return upstream, chatterbox_opt.OptimizedChatterboxMultilingualTTS.from_local(folder, "cpu", **EXACT)


@pytest.fixture(scope="module", params=["turbo", "nano"])
def turbo(request, tmp_path_factory):
    folder = folder_of(tmp_path_factory, request.param)
    upstream = upstream_tiny.load(folder, request.param)
    stop_after(upstream)
    mine = chatterbox_opt.OptimizedChatterboxTurboTTS.from_local(folder, "cpu", nano=request.param == "nano", **EXACT)
    return upstream, mine


def same_sound(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert got.shape == wanted.shape
    assert wanted.abs().max() > 1e-3, "silence would prove nothing"
    # Rounding of the pitch accumulates in the source's phase, so the error grows with time.
    seconds = max(1.0, wanted.shape[-1] / 24_000)
    assert (got - wanted).abs().max() < 1e-3 * seconds * wanted.abs().max()


def both(pair, *args, seed: int = 0, **how):
    upstream, mine = pair
    torch.manual_seed(seed)
    wanted = upstream.generate(*args, **how)
    torch.manual_seed(seed)
    return mine.generate(*args, max_new_tokens=LIMIT, **how), wanted


@pytest.mark.parametrize(
    "settings",
    [
        {}, dict(cfg_weight=0.3), dict(top_p=0.8), dict(min_p=0.15, repetition_penalty=1.6), dict(exaggeration=0.9),
        dict(temperature=1.2),
    ],
    ids=str,
)
def test_english(english, settings):
    same_sound(*both(english, "Hello there, how are you today?", **settings))


def test_english_positional_call(english):
    same_sound(*both(english, "Read me aloud", 1.5, 0.1, 0.9, None, 0.4, 0.7, 0.9, seed=3))


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Returns a function: sampling rate -> a file of 8 s of real speech at that rate."""
    import soundfile
    import soxr

    assets = Path(pytest.importorskip("s3tokenizer").__file__).parent / "assets"
    speech = np.concatenate([soundfile.read(file, dtype="float32")[0] for file in sorted(assets.glob("*.wav"))])
    folder = tmp_path_factory.mktemp("recordings")

    def at(rate: int) -> str:
        path = folder / f"{rate}.wav"
        soundfile.write(path, soxr.resample(speech[: 8 * 16_000], 16_000, rate), rate)
        return str(path)

    return at


@pytest.mark.parametrize("rate", [16_000, 22_050, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("family", ["tts", "turbo"])
def test_a_voice_of_a_recording(family, rate, recording, tmp_path_factory):
    """By the defaults in float32: a last bit of the resampled recording may change a token of the voice's prompt."""
    folder = folder_of(tmp_path_factory, family)
    upstream = upstream_tiny.load(folder, family)
    stop_after(upstream)
    kind = {"tts": chatterbox_opt.OptimizedChatterboxTTS, "turbo": chatterbox_opt.OptimizedChatterboxTurboTTS}[family]
    mine = kind.from_local(folder, "cpu", use_mixed_precision=False, enable_watermark=False)
    how = {} if family == "tts" else dict(norm_loudness=False)  # upstream 0.1.7 fails to do that with NumPy 2
    same_sound(*both((upstream, mine), "How are you today?", audio_prompt_path=recording(rate), **how))


@pytest.mark.parametrize("text", ["The quick brown fox jumps over the lazy dog.", "Yes, of course."])
def test_trained_weights_to_the_end(text):
    """Speech that ends by itself, without a limit on either side."""
    upstream, mine = upstream_tiny.load(MINI, "tts"), chatterbox_opt.OptimizedChatterboxTTS.from_mini(**EXACT)
    torch.manual_seed(0)
    wanted = upstream.generate(text)
    torch.manual_seed(0)
    same_sound(mine.generate(text), wanted)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "Good morning."), ("fr", "Bonjour, comment ça va ?"), ("zh", "你好，世界。"),
        ("ja", "こんにちは、世界。"), ("ko", "안녕하세요 세계."), ("ar", "مرحبا بالعالم."), (None, "No tag at all."),
    ],
)
def test_multilingual(multilingual, language, text):
    got, wanted = both(multilingual, text, language, repetition_penalty=1.2)
    # Upstream's repository cuts the sound of the last token; its wheel does not.
    assert got.shape[1] == wanted.shape[1] - 960
    same_sound(got, wanted[:, : got.shape[1]])


@pytest.mark.parametrize("settings", [{}, dict(top_p=0.8, top_k=40), dict(repetition_penalty=1.8)], ids=str)
def test_turbo(turbo, settings):
    same_sound(*both(turbo, "Hello there, how are you today?", **settings))


def test_voice_conversion(tmp_path_factory, recording):
    folder = folder_of(tmp_path_factory, "tts")
    upstream = upstream_tiny.load(folder, "vc")
    mine = chatterbox_opt.OptimizedChatterboxVC.from_local(folder, "cpu", **EXACT)
    for path in (recording(16_000), recording(44_100)):
        torch.manual_seed(0)
        wanted = upstream.generate(path, target_voice_path=recording(22_050))
        torch.manual_seed(0)
        same_sound(mine.generate(path, target_voice_path=recording(22_050)), wanted)


def test_optimize_takes_the_weights_from_memory(english):
    from chatterbox.tts import ChatterboxTTS

    from chatterbox_opt.upstream import optimize

    upstream, _ = english
    mine = optimize(upstream, config=tiny("tts"), **EXACT)
    assert isinstance(mine, ChatterboxTTS)
    assert isinstance(mine, chatterbox_opt.OptimizedChatterboxTTS)
    same_sound(*both((upstream, mine), "Both of us say this.", seed=2))
    same_sound(*both((upstream, mine), "And upstream's object goes on working.", seed=3))
    shared = {p.data_ptr() for p in upstream.t3.parameters()} & {p.data_ptr() for p in mine.t3.parameters()}
    assert len(shared) > 5, "what is not fused is shared"
    with pytest.raises(ValueError, match="takes a chatterbox-tts model"):
        optimize(object())
    with pytest.raises(ValueError, match="optimized already"):
        optimize(mine)


def test_optimize_takes_what_the_compiler_has_wrapped(tmp_path_factory):
    from chatterbox_opt.upstream import optimize

    upstream = upstream_tiny.load(folder_of(tmp_path_factory, "tts"), "tts")
    own = {name: tensor.clone() for name, tensor in optimize(upstream, config=tiny("tts")).t3.state_dict().items()}
    upstream.t3.tfmr = torch.compile(upstream.t3.tfmr)  # inside a part
    upstream.s3gen.flow.decoder.estimator = torch.compile(upstream.s3gen.flow.decoder.estimator)
    taken = optimize(upstream, config=tiny("tts")).t3.state_dict()
    assert taken.keys() == own.keys()
    assert all(torch.equal(taken[name], own[name]) for name in own)


def test_optimize_takes_a_model_that_was_loaded_in_inference_mode(english, tmp_path_factory):
    from chatterbox_opt.upstream import optimize

    _, wanted = english
    with torch.inference_mode():
        upstream = upstream_tiny.load(folder_of(tmp_path_factory, "tts"), "tts")
    mine = optimize(upstream, config=tiny("tts"), **EXACT)
    how = dict(seed=2, max_new_tokens=12)
    assert torch.equal(mine.generate("Whoever loads it.", **how), wanted.generate("Whoever loads it.", **how))


def test_optimize_leaves_the_graph_of_a_target_voice(tmp_path_factory, recording):
    """In full size it holds 280 MB."""
    from chatterbox_opt.upstream import optimize

    upstream = upstream_tiny.load(folder_of(tmp_path_factory, "tts"), "vc")
    upstream.set_target_voice(recording(22_050))
    assert any(torch.is_tensor(v) and v.requires_grad for v in upstream.ref_dict.values())
    mine = optimize(upstream, config=tiny("tts"))
    assert not any(torch.is_tensor(v) and v.requires_grad for v in mine.ref_dict.values())


def test_a_voice_saved_by_either_side_loads_on_the_other(english, tmp_path):
    from chatterbox.tts import Conditionals as Theirs

    upstream, mine = english
    upstream.generate("Now its voice holds what a generate leaves behind.", temperature=0.9)
    upstream.conds.save(tmp_path / "theirs.pt")
    mine.conds.save(tmp_path / "mine.pt")
    voice = chatterbox_opt.Conditionals.load(tmp_path / "theirs.pt")
    a, b = (mine.generate("Same.", voice=v, seed=1, max_new_tokens=10) for v in (voice, mine.conds))
    assert torch.equal(a, b)
    kept, upstream.conds = upstream.conds, Theirs.load(tmp_path / "mine.pt")
    try:
        same_sound(*both(english, "Saved by ours, read by theirs."))
    finally:
        upstream.conds = kept


def shorten(voice) -> None:
    """Leaves the first 2 s of a voice's prompt: the flow computes it again in every step."""
    gen, tokens = voice.gen, 50
    gen["prompt_token"], gen["prompt_token_len"] = gen["prompt_token"][:, :tokens], torch.tensor([tokens])
    gen["prompt_feat"] = gen["prompt_feat"][:, : 2 * tokens]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["tts", "turbo"])
def test_full_size(family, tmp_path):
    """A short utterance at the published sizes, which upstream loads itself. About 4 GB of memory."""
    from chatterbox.tts import ChatterboxTTS
    from chatterbox.tts_turbo import ChatterboxTurboTTS

    limit = 16
    write_checkpoint(tmp_path, family, "full", seed=0)
    with upstream_tiny.assembling():
        upstream = (ChatterboxTTS if family == "tts" else ChatterboxTurboTTS).from_local(tmp_path, "cpu")
    assert sum(p.numel() for p in upstream.t3.parameters()) > 3e8
    stop_after(upstream, limit)
    shorten(upstream.conds)
    torch.manual_seed(0)
    wanted = upstream.generate("Hello there.")
    del upstream  # one model in memory at a time
    cls = chatterbox_opt.OptimizedChatterboxTTS if family == "tts" else chatterbox_opt.OptimizedChatterboxTurboTTS
    mine = cls.from_local(tmp_path, "cpu", **EXACT)
    shorten(mine.conds)
    torch.manual_seed(0)
    same_sound(mine.generate("Hello there.", max_new_tokens=limit), wanted)
