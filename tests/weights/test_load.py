"""Folders of weights: what is read from which file, and errors that name what is wrong."""

import dataclasses
import json
import logging
import os
import shutil
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch

from chatterbox_opt import (
    EngineOptions,
    OptimizedChatterboxTTS,
    OptimizedChatterboxTurboTTS,
    OptimizedChatterboxVC,
)
from chatterbox_opt.config import MODELS, tiny
from chatterbox_opt.packing import pack
from chatterbox_opt.packing.load import load_any
from chatterbox_opt.weights import layout, safefile
from chatterbox_opt.weights.files import MEANFLOW
from chatterbox_opt.weights.load import build_s3gen, load_folder, read_config, weight_files
from chatterbox_opt.weights.random_init import write_checkpoint

CPU = torch.device("cpu")


def load(folder, family="tts", dtype=torch.float32, **how):
    return load_folder(folder, family, CPU, dtype, **how)


def edit(path, change):
    """Rewrites a file with its state dict changed in place."""
    state = safetensors.torch.load_file(path)
    change(state)
    safetensors.torch.save_file(state, path)


def same(a, b):
    sa, sb = a.state_dict(), b.state_dict()
    return sa.keys() == sb.keys() and all(torch.equal(sa[k], sb[k]) for k in sa)


@pytest.mark.parametrize("family", MODELS)
def test_every_family_loads(folders, family):
    parts = load(folders[family], family, torch.bfloat16)
    assert parts.config.family == family
    assert parts.conds_file.name == "conds.pt"
    for module, dtype in ((parts.t3, torch.bfloat16), (parts.s3gen, torch.float32), (parts.ve, torch.float32)):
        assert not module.training
        for name, p in [*module.named_parameters(), *module.named_buffers()]:
            assert p.device == CPU, name
            assert p.isfinite().all(), name
            assert not p.requires_grad, name
        assert {p.dtype for p in module.parameters()} == {dtype}


def test_voice_conversion_needs_s3gen_only(folder):
    for name in ("ve.safetensors", "t3_cfg.safetensors", "tokenizer.json", "conds.pt"):
        (folder / name).unlink()
    parts = load(folder, "vc")
    assert (parts.t3, parts.ve, parts.conds_file) == (None, None, None)


def test_twins_and_wrapped_states(folder):
    wanted = load(folder)
    for name in ("t3_cfg", "s3gen", "ve"):
        file = folder / f"{name}.safetensors"
        state = safetensors.torch.load_file(file)
        wrapped = {"t3_cfg": {"model": [state]}, "ve": {"model": state}}.get(name, state)
        torch.save(wrapped, file.with_suffix(".pt"))
        file.unlink()
    got = load(folder)
    assert same(got.t3, wanted.t3)
    assert same(got.s3gen, wanted.s3gen)
    assert same(got.ve, wanted.ve)


def test_safetensors_are_preferred(folder):
    (folder / "ve.pt").write_bytes(b"not read at all")
    load(folder)


@pytest.mark.parametrize("absolute", [False, True])
def test_fine_tunes(folder, tmp_path, absolute):
    usual = load(folder)
    mine = (tmp_path if absolute else folder) / "my_t3.safetensors"
    shutil.copy(folder / "t3_cfg.safetensors", mine)
    edit(mine, lambda s: s["speech_head.weight"].add_(1))
    tuned = load(folder, t3_file=str(mine) if absolute else mine.name)
    assert torch.equal(tuned.t3.speech_head.weight, usual.t3.speech_head.weight + 1)


def test_a_file_that_is_named_is_not_taken_for_its_twin(folder):
    usual = load(folder)
    state = safetensors.torch.load_file(folder / "t3_cfg.safetensors")
    state["speech_head.weight"].add_(1)
    torch.save(state, folder / "t3_cfg.pt")
    for name in ("t3_cfg.pt", str(folder / "t3_cfg.pt")):
        assert torch.equal(load(folder, t3_file=name).t3.speech_head.weight, usual.t3.speech_head.weight + 1)
    (folder / "t3_cfg.pt").unlink()
    assert same(load(folder, t3_file="t3_cfg.pt").t3, usual.t3)


def test_a_decoder_by_its_path_from_here(folder, tmp_path, monkeypatch):
    other = write_checkpoint(tmp_path / "other", "tts", seed=1, decoder="meanflow")
    wanted = load(folder, decoder=other / MEANFLOW)
    monkeypatch.chdir(other)
    assert same(load(folder, decoder=Path(f"./{MEANFLOW}")).s3gen, wanted.s3gen)
    with pytest.raises(FileNotFoundError, match="which Turbo is published with"):
        load(folder, decoder="meanflow")


def test_older_names_of_weight_norm(folder):
    """Torch's loading renames them, and so does upstream's."""
    wanted = load(folder).s3gen
    file = folder / "s3gen.safetensors"
    state = safetensors.torch.load_file(file)
    older = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"): tensor
        for name, tensor in state.items()
    }
    assert older.keys() != state.keys()
    assert same(build_s3gen(older, tiny("tts"), CPU), wanted)
    safetensors.torch.save_file(older, file)
    assert same(load(folder).s3gen, wanted)
    torch.save(older, file.with_suffix(".pt"))
    file.unlink()
    assert same(load(folder).s3gen, wanted)


def test_a_fine_tune_with_more_characters(folder, tmp_path):
    """Only where it is named: the folder's own T3 has to be of its family."""
    state = safetensors.torch.load_file(folder / "t3_cfg.safetensors")
    rows, dim = state["text_emb.weight"].shape
    more = torch.cat([state["text_emb.weight"], torch.ones(6, dim)])
    state |= {"text_emb.weight": more, "text_head.weight": more.clone()}
    safetensors.torch.save_file(state, folder / "mine.safetensors")
    tuned = load(folder, t3_file="mine.safetensors")
    assert tuned.config.t3.text_vocab == tuned.t3.config.text_vocab == rows + 6
    assert torch.equal(tuned.t3.text_emb.weight.float(), more)
    pack(folder, tmp_path / "packed", t3_file="mine.safetensors", engine=EngineOptions.exact())
    packed, _ = load_any(tmp_path / "packed", "tts", "cpu", {"engine": EngineOptions.exact()})
    assert torch.equal(packed.t3.text_emb.weight, more)
    (folder / "mine.safetensors").rename(folder / "t3_cfg.safetensors")
    with pytest.raises(ValueError, match=r"text_emb\.weight has shape"):
        load(folder)


def test_turbos_decoder_under_english(folders):
    from chatterbox_opt import OptimizedChatterboxTTS, OptimizedChatterboxTurboTTS

    file = folders["turbo"] / "s3gen_meanflow.safetensors"
    usual, mixed = (
        OptimizedChatterboxTTS.from_local(folders["tts"], "cpu", decoder=f, enable_watermark=False)
        for f in (None, file)
    )
    turbo = OptimizedChatterboxTurboTTS.from_local(folders["turbo"], "cpu", enable_watermark=False)
    assert mixed.s3gen.flow.config.meanflow
    assert not usual.s3gen.flow.config.meanflow
    tokens = mixed.generate_tokens("Hello there.", seed=1, max_new_tokens=12)
    assert torch.equal(tokens, usual.generate_tokens("Hello there.", seed=1, max_new_tokens=12))
    a, b, c = (m.pipeline.render([tokens], usual.conds, 3) for m in (mixed, turbo, usual))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("eight_bits", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_decoder_of_an_estimator_alone(tmp_path, eight_bits):
    """It replaces the estimator of the S3Gen beside it, whichever folder asks for it."""
    folder, elsewhere = (write_checkpoint(tmp_path / n, "tts", seed=i, decoder="meanflow") for i, n in enumerate("ab"))
    file = folder / MEANFLOW
    whole, base = safetensors.torch.load_file(file), safetensors.torch.load_file(folder / "s3gen.safetensors")
    time = f"{layout.ESTIMATOR}time_mlp."
    part = {k: 2 * v for k, v in whole.items() if k.startswith(layout.ESTIMATOR) and not k.startswith(time)}
    part[layout.MEANFLOW_KEY] = torch.eye(256, 512).to(eight_bits)  # ones and zeros need no more
    safetensors.torch.save_file(part, file)
    reference = tmp_path / "whole.safetensors"
    safetensors.torch.save_file(base | {k: v.to(torch.float32) for k, v in part.items()}, reference)
    wanted = load(folder, decoder=reference)
    assert wanted.config.flow.meanflow
    for got in (load(folder, decoder="meanflow"), load(elsewhere, decoder=file)):
        assert got.config == wanted.config
        assert same(got.s3gen, wanted.s3gen)
    assert not same(load(folder).s3gen.flow.decoder.estimator.up, wanted.s3gen.flow.decoder.estimator.up)
    files = weight_files(elsewhere, "tts", decoder=file).values()
    assert folder / "s3gen.safetensors" in files, "what is packed of it is made anew when either changes"
    (folder / "s3gen.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no s3gen\.safetensors"):
        load(elsewhere, decoder=file)


def test_a_pack_names_its_t3_as_it_likes(folders, tmp_path):
    folder = shutil.copytree(folders["mtl"], tmp_path / "mtl")
    (folder / "t3_mtl23ls_v2.safetensors").rename(folder / "t3_fr.safetensors")
    load(folder, "mtl")


def test_a_familys_own_t3_goes_before_others(folder):
    """Also as a pickle."""
    usual = folder / "t3_cfg.safetensors"
    state = safetensors.torch.load_file(usual)
    wanted = load(folder).t3.speech_head.weight
    torch.save(state, usual.with_suffix(".pt"))
    usual.unlink()
    state["speech_head.weight"].zero_()
    safetensors.torch.save_file(state, folder / "t3_mine.safetensors")
    assert torch.equal(load(folder).t3.speech_head.weight, wanted)


def test_unread_and_unknown_tensors(folder, caplog):
    wanted = load(folder)

    def strip(state):
        for key in ("text_head.weight", "tfmr.embed_tokens.weight"):
            del state[key]
        state["patched_model.speech_head.weight"] = torch.zeros(1)  # a T3 that was saved after use

    edit(folder / "t3_cfg.safetensors", strip)

    def extend(state):
        del state["tokenizer._mel_filters"], state["tokenizer.window"]
        state["flow.decoder.estimator.extra"] = torch.zeros(3)

    edit(folder / "s3gen.safetensors", extend)
    with caplog.at_level(logging.DEBUG, "chatterbox_opt"):
        got = load(folder)
    assert same(got.t3, wanted.t3)
    assert same(got.s3gen, wanted.s3gen)
    assert "flow.decoder.estimator.extra" in caplog.text


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("t3_cfg", "tfmr.layers.1.mlp.up_proj.weight"),
        ("s3gen", "mel2wav.conv_pre.parametrizations.weight.original1"),
        ("s3gen", "speaker_encoder.head.bn1.running_var"),
        ("ve", "lstm.bias_hh_l0"),
    ],
)
def test_missing_and_misshapen_tensors_are_named(folder, name, key):
    file = folder / f"{name}.safetensors"
    shape = tuple(safetensors.torch.load_file(file)[key].shape)
    edit(file, lambda s: s.update({key: torch.zeros(7, 5)}))
    with pytest.raises(ValueError, match=rf"{name}\.safetensors: {key} has shape \(7, 5\)") as error:
        load(folder)
    assert str(shape) in str(error.value)
    edit(file, lambda s: s.pop(key))
    with pytest.raises(ValueError, match=rf"{name}\.safetensors lacks 1 of \d+ tensors, the first {key}"):
        load(folder)


def test_a_tensor_t3_has_no_place_for(folder):
    edit(folder / "t3_cfg.safetensors", lambda s: s.update({"tfmr.layers.0.self_attn.q_proj.lora_A": torch.zeros(1)}))
    with pytest.raises(ValueError, match=r"no place for, the first tfmr.*lora_A"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 5, 100, -1000])
def test_truncated_files(folder, keep):
    file = folder / "t3_cfg.safetensors"
    size = file.stat().st_size
    os.truncate(file, keep % size)
    with pytest.raises(ValueError, match=r"t3_cfg\.safetensors.*download it again"):
        load(folder)


@pytest.mark.parametrize("content", [b"PK\x03\x04 no", b"", b"garbage" * 100])
def test_broken_pickles(folder, content):
    (folder / "ve.safetensors").unlink()
    (folder / "ve.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"ve\.pt cannot be read"):
        load(folder)


def test_broken_headers(folder):
    too_short = b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 4]}}'
    before_the_data = b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}'
    for header in (b"[]", too_short, before_the_data, b'{"a": {"dtype": "Q4"}}', b"{"):
        (folder / "ve.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 64)
        with pytest.raises(ValueError, match=r"ve\.safetensors has a broken header"):
            load(folder)


def test_code_in_pickles_is_not_run(folder):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(folder / "harm"),)

    (folder / "ve.safetensors").unlink()
    torch.save({"a": Evil()}, folder / "ve.pt")
    with pytest.raises(ValueError, match=r"ve\.pt cannot be read"):
        load(folder)
    assert not (folder / "harm").exists()


def test_what_is_not_there_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="from_pretrained"):
        load(tmp_path / "nowhere")
    (folder / "s3gen.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no s3gen\.safetensors or s3gen\.pt; it holds conds\.pt"):
        load(folder)
    with pytest.raises(FileNotFoundError, match=r"no mine\.safetensors"):
        load(folder, t3_file="mine.safetensors")


def test_config_json(folder):
    with pytest.raises(ValueError, match="holds a tts model; turbo was asked for"):
        load(folder, "turbo")
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        load(folder)
    for others in ({"model_type": "gpt2"}, 5, ["family"]):  # another library's
        (folder / "config.json").write_text(json.dumps(others))
        with pytest.raises(ValueError, match="of this model family"):
            load(folder)
    (folder / "config.json").write_text(json.dumps({"family": "tts", "t3": 5}))
    with pytest.raises(ValueError, match=r"config\.t3=5: an object is needed"):
        load(folder)


def test_safefile_reads_what_safetensors_writes_and_the_other_way_round(tmp_path):
    state = {
        "a": torch.randn(3, 4), "scalar": torch.tensor(5), "empty": torch.zeros(0, 7),
        "half": torch.randn(9).bfloat16(),
        "mask": torch.tensor([True, False]), "double": torch.randn(2, 2, 2).double(),
    }
    theirs, ours = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    safetensors.torch.save_file(state, theirs, metadata={"format": "pt"})
    got = dict(safefile.read_tensors(theirs, safefile.read_header(theirs)))
    assert got.keys() == state.keys()
    safefile.write(ours, {k: (t.dtype, tuple(t.shape)) for k, t in state.items()}, state.values())
    again = safetensors.torch.load_file(ours)
    for key, tensor in state.items():
        assert torch.equal(got[key], tensor)
        assert got[key].dtype == tensor.dtype
        assert torch.equal(again[key], tensor)
    with pytest.raises(ValueError, match="instead of"):
        safefile.write(ours, {"a": (torch.float32, (2,))}, [torch.zeros(3)])


def test_a_path_that_begins_here_is_not_one_of_the_folder(folder, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(folder / "t3_cfg.safetensors", "t3_cfg.safetensors")
    found = weight_files(folder, "tts", t3_file="./t3_cfg.safetensors")["t3"]
    assert found.resolve() == tmp_path / "t3_cfg.safetensors"
    assert weight_files(folder, "tts", t3_file="t3_cfg.safetensors")["t3"] == folder / "t3_cfg.safetensors"


def test_sizes_that_a_folder_does_not_name_are_told(folder):
    """A folder of another program has no config.json of ours."""
    config = read_config(folder, "tts")
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="is it whole"):
        OptimizedChatterboxTTS.from_local(folder, "cpu")
    told = OptimizedChatterboxTTS.from_local(folder, "cpu", config=dataclasses.replace(config, max_chars=50))
    assert told.config.max_chars == 50
    assert told.generate("Hello there.", max_new_tokens=12).numel()
    assert OptimizedChatterboxVC.from_local(folder, "cpu", config=config).config == config
    with pytest.raises(ValueError, match="config= holds a tts model; turbo was asked for"):
        OptimizedChatterboxTurboTTS.from_local(folder, "cpu", config=config)
    with pytest.raises(ValueError, match="neither packed nor to be packed"):
        OptimizedChatterboxTTS.from_local(folder, "cpu", config=config, cache_packed=True)
