"""Other weights for a loaded model: fine-tuned ones are taken, in every form, as a fresh load of them would."""

from __future__ import annotations

import logging

import pytest
import torch
import upstream_tiny
from conftest import NEEDS_UPSTREAM
from safetensors.torch import load_file, save_file

from chatterbox_opt import EngineOptions, OptimizedChatterboxTTS, OptimizedChatterboxTurboTTS, OptimizedChatterboxVC
from chatterbox_opt.weights.random_init import write_checkpoint

PLAIN = dict(enable_watermark=False)
FORMS = [dict(), dict(use_mixed_precision=False), dict(quantize="int8"), dict(quantize="int4")]
DOORS = {"tts": OptimizedChatterboxTTS, "turbo": OptimizedChatterboxTurboTTS}
T3_FILES = {"tts": "t3_cfg.safetensors", "turbo": "t3_turbo_v1.safetensors"}
UNREAD = {"tts": {"text_head.weight", "tfmr.embed_tokens.weight"}, "turbo": {"text_head.weight", "tfmr.wte.weight"}}
TOKENS = torch.arange(30) * 97 % 6561


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """family -> two folders, which differ in all weights and have the same voice."""
    out = {}
    for family in DOORS:
        out[family] = [tmp_path_factory.mktemp(f"{family}{seed}") for seed in (0, 1)]
        for seed, folder in enumerate(out[family]):
            write_checkpoint(folder, family, "tiny", seed=seed)
        (out[family][1] / "conds.pt").write_bytes((out[family][0] / "conds.pt").read_bytes())
    return out


def said(model) -> list[int]:
    return model.generate_tokens("Hello there.", seed=4, max_new_tokens=24).tolist()


def sound(model) -> torch.Tensor:
    return model.tokens_to_wav(TOKENS, seed=4)


def test_older_names_of_weight_norm_are_taken(folders):
    first, tuned = folders["tts"]
    model, wanted = (OptimizedChatterboxTTS.from_local(folder, "cpu", **PLAIN) for folder in (first, tuned))
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = load_file(tuned / "s3gen.safetensors")
    for new, old in names.items():
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    found = model.s3gen.load_state_dict(state)
    assert not found.unexpected_keys
    assert torch.equal(sound(model), sound(wanted))


# ---- T3 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("family", DOORS)
def test_fine_tuned_t3_says_what_a_model_loaded_with_it_says(folders, family, form):
    first, tuned = folders[family]
    model = DOORS[family].from_local(first, "cpu", **PLAIN, **form)
    wanted = DOORS[family].from_local(first, "cpu", t3_file=str(tuned / T3_FILES[family]), **PLAIN, **form)
    assert said(model) != said(wanted), "the files are to differ"
    found = model.t3.load_state_dict(load_file(tuned / T3_FILES[family]))
    assert not found.missing_keys
    assert not found.unexpected_keys
    assert model.t3.to("cpu").eval() is model.t3
    assert said(model) == said(wanted)
    assert torch.equal(sound(model), sound(wanted))


def test_weights_made_in_inference_mode_are_taken_outside_of_it(folders):
    """As by a program that merges or reads weights there: such tensors can never require a gradient."""
    first, tuned = folders["tts"]
    model = OptimizedChatterboxTTS.from_local(first, "cpu", use_mixed_precision=False, **PLAIN)
    wanted = OptimizedChatterboxTTS.from_local(tuned, "cpu", use_mixed_precision=False, **PLAIN)
    for part, file in ((model.t3, T3_FILES["tts"]), (model.s3gen, "s3gen.safetensors"), (model.ve, "ve.safetensors")):
        with torch.inference_mode():
            state = {name: tensor.clone() for name, tensor in load_file(tuned / file).items()}
        part.load_state_dict(state)
    assert said(model) == said(wanted)
    assert torch.equal(sound(model), sound(wanted))


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("family", DOORS)
def test_weights_come_back_under_their_published_names(folders, family, form):
    """Rounded as far as their form rounds; loading them again changes nothing."""
    file = load_file(folders[family][0] / T3_FILES[family])
    model = DOORS[family].from_local(folders[family][0], "cpu", **PLAIN, **form)
    state = model.t3.state_dict()
    assert set(file) - set(state) == UNREAD[family]
    assert not set(state) - set(file)
    rounding = {"int4": 0.07, "int8": 0.005}.get(form.get("quantize"), 0 if form else 1e-3)
    for name, tensor in state.items():
        assert tensor.shape == file[name].shape
        assert (tensor.float() - file[name]).abs().max() <= rounding * file[name].abs().max(), name
    before = said(model)
    model.t3.load_state_dict(state)
    if form.get("quantize") != "int4":  # whose scales are bf16, and rounded again
        assert said(model) == before
        again = model.t3.state_dict()
        assert all(torch.equal(again[name], state[name]) for name in state)


@pytest.mark.parametrize("form", FORMS[:3], ids=str)
def test_a_part_of_a_file_leaves_the_rest_as_it_is(folders, form):
    first, tuned = folders["tts"]
    model = OptimizedChatterboxTTS.from_local(first, "cpu", **PLAIN, **form)
    layer = {k: v for k, v in load_file(tuned / T3_FILES["tts"]).items() if k.startswith("tfmr.layers.1.")}
    with pytest.raises(RuntimeError, match="keys are missing"):
        model.t3.load_state_dict(layer)
    found = model.t3.load_state_dict(layer | {"lora.A": torch.zeros(2)}, strict=False)
    assert found.unexpected_keys == ["lora.A"]
    assert not set(found.missing_keys) & set(layer)
    assert "speech_emb.weight" in found.missing_keys
    mixed = load_file(first / T3_FILES["tts"]) | layer
    save_file(mixed, first / "mixed.safetensors")
    wanted = OptimizedChatterboxTTS.from_local(first, "cpu", t3_file="mixed.safetensors", **PLAIN, **form)
    assert said(model) == said(wanted)


def test_what_does_not_fit_is_refused_and_changes_nothing(folders):
    model = OptimizedChatterboxTTS.from_local(folders["tts"][0], "cpu", **PLAIN)
    before, state = said(model), load_file(folders["tts"][1] / T3_FILES["tts"])
    for wrong, strict, match in (
        (state | {"speech_head.lora_A.weight": torch.zeros(2)}, True, "no place"),
        (state | {"text_emb.weight": torch.zeros(900, 64)}, False, r"text_emb.weight has shape \(900, 64\)"),
        ({}, True, "are missing"),
    ):
        with pytest.raises(RuntimeError, match=match):
            model.t3.load_state_dict(wrong, strict=strict)
    assert said(model) == before


# ---- S3Gen and the voice encoder -----------------------------------------------------------------


@pytest.mark.parametrize("form", [dict(), dict(use_mixed_precision=False)], ids=str)
def test_fine_tuned_s3gen(folders, form):
    first, tuned = folders["tts"]
    model = OptimizedChatterboxTTS.from_local(first, "cpu", **PLAIN, **form)
    state = load_file(tuned / "s3gen.safetensors")
    wanted = OptimizedChatterboxTTS.from_local(first, "cpu", decoder=str(tuned / "s3gen.safetensors"), **PLAIN, **form)
    assert not torch.allclose(sound(model), sound(wanted), atol=1e-2), "the files are to differ"
    recording = torch.randn(60_000, generator=torch.Generator().manual_seed(0)).numpy()
    before = model.prepare_voice(recording, sample_rate=24_000)
    missing = [name for name in state if name in ("tokenizer._mel_filters", "tokenizer.window")]
    model.s3gen.load_state_dict({k: v for k, v in state.items() if k not in missing}, strict=False)
    assert torch.equal(sound(model), sound(wanted))
    after, fresh = (m.prepare_voice(recording, sample_rate=24_000) for m in (model, wanted))
    assert torch.equal(after.gen["embedding"], fresh.gen["embedding"])
    assert not torch.equal(after.gen["embedding"], before.gen["embedding"]), "measured by the old encoder"
    with pytest.raises(RuntimeError, match="loaded as a whole"):
        model.s3gen.load_state_dict({k: v for k, v in state.items() if k.startswith("flow.")}, strict=False)
    with pytest.raises(RuntimeError, match="kept fused"):
        model.s3gen.state_dict()


def test_s3gen_of_voice_conversion(folders):
    first, tuned = folders["tts"]
    recording = torch.randn(48_000, generator=torch.Generator().manual_seed(0)).numpy()
    model, wanted = (OptimizedChatterboxVC.from_local(folder, "cpu", **PLAIN) for folder in (first, tuned))
    how = dict(sample_rate=16_000, seed=1)
    assert not torch.allclose(model.generate(recording, **how), wanted.generate(recording, **how), atol=1e-2)
    model.s3gen.load_state_dict(load_file(tuned / "s3gen.safetensors"))
    assert torch.equal(model.generate(recording, **how), wanted.generate(recording, **how))


def test_another_voice_encoder(folders):
    first, tuned = folders["tts"]
    recording = torch.randn(60_000, generator=torch.Generator().manual_seed(0)).numpy()
    model, other = (OptimizedChatterboxTTS.from_local(folder, "cpu", **PLAIN) for folder in (first, tuned))
    before = model.prepare_voice(recording, sample_rate=24_000).t3.speaker_emb
    model.ve.load_state_dict(load_file(tuned / "ve.safetensors"))
    after = model.prepare_voice(recording, sample_rate=24_000).t3.speaker_emb
    assert torch.equal(after, other.prepare_voice(recording, sample_rate=24_000).t3.speaker_emb)
    assert not torch.equal(after, before)
    kept = model.ve.load_state_dict({"proj.bias": other.ve.proj.bias}, strict=False)
    assert "proj.weight" in kept.missing_keys
    assert torch.equal(model.prepare_voice(recording, sample_rate=24_000).t3.speaker_emb, after)


# ---- assigning, and networks of chatterbox-tts ---------------------------------------------------


def test_parts_of_another_model(folders):
    first, tuned = (OptimizedChatterboxTTS.from_local(folder, "cpu", **PLAIN) for folder in folders["tts"])
    first.t3 = tuned.t3
    assert said(first) == said(tuned)
    first.s3gen = tuned.s3gen.network
    assert torch.equal(sound(first), sound(tuned))
    parts = tuned.t3, tuned.s3gen, tuned.ve, tuned.tokenizer
    made = OptimizedChatterboxTTS(*parts, "cpu", tuned.conds, config=tuned.config, **PLAIN)
    assert said(made) == said(tuned)
    assert torch.equal(sound(made), sound(tuned))


def test_another_tokenizer(folders):
    model = OptimizedChatterboxTTS.from_local(folders["tts"][0], "cpu", **PLAIN)

    class Backwards:
        def text_to_tokens(self, text: str) -> torch.Tensor:
            return own.text_to_tokens(text[::-1])

    own, model.tokenizer = model.tokenizer, Backwards()
    backwards = said(model)
    model.tokenizer = own
    assert said(model) != backwards


def test_networks_of_chatterbox_tts(folders):
    """A constructor and an assignment take them, as programs that add characters to the vocabulary do."""
    pytest.importorskip("chatterbox", reason=NEEDS_UPSTREAM)
    folder = folders["tts"][0]
    theirs, exact = upstream_tiny.load(folder, "tts"), dict(engine=EngineOptions.exact(), **PLAIN)
    mine = OptimizedChatterboxTTS.from_local(folder, "cpu", **exact)
    parts = theirs.t3, theirs.s3gen, theirs.ve, theirs.tokenizer
    made = OptimizedChatterboxTTS(*parts, "cpu", mine.conds, config=mine.config, **exact)
    assert said(made) == said(mine)
    assert torch.equal(sound(made), sound(mine))
    larger = torch.nn.Embedding(theirs.t3.text_emb.num_embeddings + 8, theirs.t3.dim)
    with torch.no_grad():
        larger.weight[:-8] = theirs.t3.text_emb.weight
    theirs.t3.text_emb = larger
    theirs.t3.text_head = torch.nn.Linear(theirs.t3.dim, larger.num_embeddings, bias=False)
    mine.t3 = theirs.t3
    assert mine.t3.hp.text_tokens_dict_size == larger.num_embeddings
    assert said(mine) == said(made)
    ids = torch.tensor([255, larger.num_embeddings - 1, 12, 0])
    torch.manual_seed(2)
    got = mine.t3.inference(t3_cond=mine.conds.t3, text_tokens=ids, max_new_tokens=12)
    torch.manual_seed(2)
    wanted = theirs.t3.inference(t3_cond=theirs.conds.t3, text_tokens=torch.stack([ids, ids]), max_new_tokens=12)
    assert torch.equal(got, wanted)


# ---- what changes nothing ------------------------------------------------------------------------


def test_a_place_and_a_precision_are_chosen_at_the_load(folders, caplog):
    model = OptimizedChatterboxTTS.from_local(folders["tts"][0], "cpu", use_mixed_precision=False, **PLAIN)
    before = said(model)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert model.t3.to("cpu").eval() is model.t3
        assert model.t3.to(device="cpu", dtype=torch.float32).requires_grad_(False).float().cpu() is model.t3
        assert not caplog.records
        model.t3.to(dtype=torch.bfloat16)
        model.s3gen.half()
        model.ve.to("meta")
        model.t3.train()
    about = [record.getMessage().split(":")[0] for record in caplog.records]
    assert about == ["model.t3.to(torch.bfloat16)", "model.s3gen.to(torch.float16)", "model.ve.to('meta')",
                     "model.t3.train()"]
    assert said(model) == before
    assert (model.t3.dtype, model.s3gen.dtype, model.ve.dtype) == (torch.float32,) * 3


def test_a_replaced_method_says_who_calls_it(folders, caplog):
    model = OptimizedChatterboxTTS.from_local(folders["tts"][0], "cpu", **PLAIN)
    with caplog.at_level(logging.WARNING):
        model.t3.inference = lambda **how: "mine"
    assert "model.t3.inference was replaced" in caplog.text
    assert model.t3.inference() == "mine"
    assert said(model)


def test_a_model_goes_with_its_last_reference(folders):
    """No cycle keeps its memory until a collection."""
    import gc
    import weakref

    gc.collect()
    gc.disable()
    try:
        model = OptimizedChatterboxTTS.from_local(folders["tts"][0], "cpu", **PLAIN)
        parts, pipeline = (model.t3, model.s3gen, model.ve), weakref.ref(model.pipeline)
        gone = weakref.ref(model)
        del model
        assert gone() is None
        assert parts[0].hp.start_speech_token == 6561, "a part lives on by itself"
        assert pipeline() is not None
    finally:
        gc.enable()


# ---- other networks, other forms -----------------------------------------------------------------


def test_what_stood_there_can_be_put_back(folders):
    """Programs hold several fine-tuned models and switch between them."""
    a, b = (OptimizedChatterboxTTS.from_local(folder, "cpu", **PLAIN) for folder in folders["tts"])
    base, sound_of, ve = a.t3, a.s3gen, a.ve
    before, after, wave = said(a), said(b), sound(a)
    for _ in range(2):
        a.t3, a.s3gen, a.ve = b.t3, b.s3gen, b.ve
        assert (said(a), torch.equal(sound(a), sound(b))) == (after, True)
        with pytest.raises(RuntimeError, match="taken its place"):
            base.inference(t3_cond=a.conds.t3, text_tokens=torch.tensor([255, 9, 0]))
        with pytest.raises(RuntimeError, match="taken its place"):
            ve.embeds_from_wavs([torch.ones(16_000).numpy()], 16_000)
        a.t3, a.s3gen, a.ve = base, sound_of, ve
        assert (said(a), torch.equal(sound(a), wave)) == (before, True)
        assert (a.t3, a.s3gen, a.ve) == (base, sound_of, ve)
        assert base.inference(t3_cond=a.conds.t3, text_tokens=torch.tensor([255, 9, 0])).numel()
        assert ve.embeds_from_wavs([torch.ones(16_000).numpy()], 16_000).shape == (1, 256)


def test_what_is_put_back_has_what_was_changed_in_it(folders):
    a, b = (OptimizedChatterboxTTS.from_local(folder, "cpu", **PLAIN) for folder in folders["tts"])
    base, drawn = a.t3, []
    own = base.inference

    def watched(**how):
        drawn.append(how)
        return own(**how)

    base.inference = watched
    a.t3 = b.t3
    a.generate("Good.", seed=1, max_new_tokens=4)
    assert not drawn, "another network speaks"
    a.t3 = base
    a.generate("Good.", seed=1, max_new_tokens=4)
    assert drawn


def test_a_network_of_a_model_with_other_options(folders):
    """Is copied, so that its own model goes on as before."""
    a, b = (OptimizedChatterboxTTS.from_local(folder, "cpu", **PLAIN, **how) for folder, how in zip(
        folders["tts"], (dict(engine=EngineOptions.exact()), dict(quantize="int8"))))
    before = said(a)
    wanted = OptimizedChatterboxTTS.from_local(folders["tts"][0], "cpu", quantize="int8", **PLAIN)
    b.t3 = a.t3
    assert said(b) == said(wanted)
    assert said(a) == before
    with pytest.raises(ValueError, match="same ones"):
        b.s3gen = a.s3gen


def test_a_two_step_decoder(folders, tmp_path):
    """Is known by its weights, whichever way it comes."""
    write_checkpoint(tmp_path, "tts", "tiny", seed=2, decoder="meanflow")
    file = tmp_path / "s3gen_meanflow.safetensors"
    model = OptimizedChatterboxTTS.from_local(folders["tts"][0], "cpu", **PLAIN)
    wanted = OptimizedChatterboxTTS.from_local(folders["tts"][0], "cpu", decoder=str(file), **PLAIN)
    assert not model.s3gen.meanflow
    model.s3gen.load_state_dict(load_file(file), strict=False)
    assert model.s3gen.meanflow
    assert torch.equal(sound(model), sound(wanted))


@pytest.mark.parametrize("family", DOORS)
def test_more_characters_beside_tables_that_nobody_reads(folders, family):
    """A trainer enlarges text_emb; GPT-2's own table and the text head may stay as they are."""
    model = DOORS[family].from_local(folders[family][0], "cpu", **PLAIN)
    state = load_file(folders[family][0] / T3_FILES[family])
    rows = len(state["text_emb.weight"]) + 4
    state["text_emb.weight"] = torch.cat([state["text_emb.weight"], torch.ones(4, model.t3.dim)])
    model.t3.hp.text_tokens_dict_size = rows
    before = said(model)
    model.t3.load_state_dict(state)
    assert model.t3.hp.text_tokens_dict_size == rows
    assert said(model) == before


def test_a_replaced_network_goes_at_once(folders):
    import gc
    import weakref

    gc.collect()
    gc.disable()
    try:
        a, b = (OptimizedChatterboxTTS.from_local(folder, "cpu", **PLAIN) for folder in folders["tts"])
        assert sound(a).numel()
        gone = [weakref.ref(a.t3.network), weakref.ref(a.s3gen.network.flow)]
        a.t3, a.s3gen = b.t3, b.s3gen
        assert [ref() for ref in gone] == [None, None]
    finally:
        gc.enable()
