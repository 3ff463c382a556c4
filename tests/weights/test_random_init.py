"""Random checkpoints: equal for equal seeds, and with an effect of every tensor."""

import dataclasses
import filecmp
import shutil

import pytest
import safetensors.torch
import torch

from chatterbox_opt import (
    EngineOptions,
    OptimizedChatterboxMultilingualTTS,
    OptimizedChatterboxTTS,
    OptimizedChatterboxTurboTTS,
)
from chatterbox_opt.text.tokenizer import load_tokenizer
from chatterbox_opt.weights.load import load_folder, read_config
from chatterbox_opt.weights.random_init import random_folder, write_checkpoint

TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps."
N = 48  # speech tokens


def model(folder, family):
    doors = {"tts": OptimizedChatterboxTTS, "mtl": OptimizedChatterboxMultilingualTTS}
    cls = doors.get(family, OptimizedChatterboxTurboTTS)
    extra = {"nano": True} if family == "nano" else {}
    return cls.from_local(folder, "cpu", engine=EngineOptions.exact(), enable_watermark=False, **extra)


def draw(speaker, text=TEXT, **how):
    language = {"language_id": "en"} if speaker.family == "mtl" else {}
    return speaker.generate_tokens(text, seed=3, max_new_tokens=N, **language, **how).tolist()


def other_voice(conds, seed=1):
    g = torch.Generator().manual_seed(seed)
    speaker = torch.randn(1, 256, generator=g).clamp(min=0)
    tokens = torch.randint(6561, conds.t3.cond_prompt_speech_tokens.shape, generator=g)
    t3 = dataclasses.replace(conds.t3, speaker_emb=speaker / speaker.norm(), cond_prompt_speech_tokens=tokens)
    return dataclasses.replace(conds, t3=t3)


@pytest.mark.parametrize("family", ["tts", "mtl", "turbo", "nano"])
def test_every_part_changes_the_tokens_drawn(folders, family, tmp_path):
    speaker = model(folders[family], family)
    usual = draw(speaker)
    assert len(usual) >= N - 1, "control tokens are next to never drawn"
    assert len(set(usual)) > N // 3
    assert draw(speaker) == usual, "the same seed gives the same tokens"
    assert draw(speaker, TEXT.replace("fox", "fax")) != usual, "one changed letter"
    assert draw(speaker, voice=other_voice(speaker.conds)) != usual, "another voice"
    assert draw(speaker, temperature=0.9) != usual
    if family in ("tts", "mtl"):
        assert draw(speaker, exaggeration=0.7) != usual
        assert draw(speaker, cfg_weight=0.3) != usual
        assert draw(speaker, cfg_weight=0.0) != usual
        tables = ["text_pos_emb.emb.weight", "speech_pos_emb.emb.weight"]
    else:
        tables = ["tfmr.wpe.weight"]
    for table in tables:
        shifted = shutil.copytree(folders[family], tmp_path / table)
        (file,) = shifted.glob("t3_*.safetensors")
        state = safetensors.torch.load_file(file)
        state[table] = state[table].roll(1, 0).contiguous()
        safetensors.torch.save_file(state, file)
        assert draw(model(shifted, family)) != usual, table


def test_logits_are_neither_flat_nor_certain(folders):
    t3 = load_folder(folders["tts"], "tts", torch.device("cpu"), torch.float32).t3
    normed = torch.randn(64, t3.config.dim)
    spread = t3.speech_head(normed)[:, :6561].std(dim=1)
    assert 3 < spread.mean() < 7


def test_the_same_seed_writes_the_same_files(folders, tmp_path):
    again = write_checkpoint(tmp_path / "again", "tts")
    names = sorted(p.name for p in again.iterdir())
    assert names == sorted(p.name for p in folders["tts"].iterdir())
    compared = [name for name in names if name != "conds.pt"]
    match, mismatch, errors = filecmp.cmpfiles(again, folders["tts"], compared, shallow=False)
    assert not mismatch + errors, match
    other = write_checkpoint(tmp_path / "other", "tts", seed=1)
    assert not filecmp.cmp(other / "t3_cfg.safetensors", again / "t3_cfg.safetensors", shallow=False)


@pytest.mark.parametrize("family", ["tts", "mtl"])
def test_the_two_step_decoder_beside_its_own(folders, tmp_path, family):
    """Turbo's file to the byte, and nothing else changes."""
    name = "s3gen_meanflow.safetensors"
    both = write_checkpoint(tmp_path / "both", family, decoder="meanflow")
    assert {p.name for p in both.iterdir()} == {name, *(p.name for p in folders[family].iterdir())}
    assert filecmp.cmp(both / name, folders["turbo"] / name, shallow=False)
    with pytest.raises(ValueError, match=r"decoder='quick'.*standard, meanflow"):
        write_checkpoint(tmp_path / "other", family, decoder="quick")


@pytest.mark.parametrize("family", ["tts", "mtl", "turbo"])
def test_tokenizers_have_the_size_of_the_model(folders, family, caplog):
    config = read_config(folders[family], family)
    tokenizer = load_tokenizer(folders[family], config)
    assert not caplog.records
    size = len(tokenizer) if config.t3.is_gpt else tokenizer.tokenizer.get_vocab_size()
    assert size == config.t3.text_vocab
    if not config.t3.is_gpt:
        assert tokenizer.tokenizer.token_to_id("[START]") == 255
        assert tokenizer.tokenizer.token_to_id("[STOP]") == 0
        assert tokenizer.decode(tokenizer.encode("some words.")) == "some words."


def test_folders_are_lent():
    with random_folder("tts", "tiny", 0) as folder:
        assert (folder / "config.json").is_file()
    assert not folder.exists()


def test_wrong_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"family='english'.*tts, mtl, turbo, nano"):
        write_checkpoint(tmp_path, "english")
    with pytest.raises(ValueError, match=r"size='huge'.*tiny, full"):
        write_checkpoint(tmp_path, "tts", "huge")


@pytest.mark.parametrize("family", ["tts", "vc", "mtl", "turbo", "nano"])
def test_upstream_takes_the_tiny_folders(upstream, folders, family):
    import upstream_tiny

    model = upstream_tiny.load(folders["tts" if family == "vc" else family], family)
    assert model.sr == 24_000


@pytest.mark.slow
def test_upstream_itself_loads_a_multilingual_folder_of_full_size(upstream, tmp_path, monkeypatch):
    """Those of other families: tests/e2e/test_parity.py."""
    import upstream_tiny
    from chatterbox.models.tokenizers import tokenizer
    from chatterbox.mtl_tts import ChatterboxMultilingualTTS

    folder = write_checkpoint(tmp_path, "mtl", "full")
    monkeypatch.setattr(tokenizer, "hf_hub_download", lambda filename, **_: str(folder / filename))
    with upstream_tiny.assembling():
        model = ChatterboxMultilingualTTS.from_local(folder, "cpu")
    assert sum(p.numel() for p in model.t3.parameters()) > 3e8
