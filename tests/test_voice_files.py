"""conds.pt as upstream writes it, in every state, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from chatterbox_opt.config import ModelConfig, tiny
from chatterbox_opt.voice import Conditionals, T3Cond


def stored(config: ModelConfig, **changes: Any) -> dict[str, dict[str, Any]]:
    n = config.t3.prompt_tokens
    data = {
        "t3": {
            "speaker_emb": torch.randn(1, 256), "clap_emb": None, "cond_prompt_speech_emb": None,
            "cond_prompt_speech_tokens": torch.randint(6561, (1, n)), "emotion_adv": torch.full((1, 1, 1), 0.5),
        },
        "gen": {
            "prompt_token": torch.randint(6561, (1, 250)), "prompt_token_len": torch.tensor([250]),
            "prompt_feat": torch.randn(1, 500, 80), "prompt_feat_len": None, "embedding": torch.randn(1, 192),
        },
    }
    for name, value in changes.items():
        part = "t3" if name in data["t3"] else "gen"
        data[part][name] = value
    return data


def test_what_upstream_leaves_after_a_generate_is_mended(tmp_path: Path):
    config = tiny("tts")
    data = stored(config)
    want = data["gen"]["prompt_token"]
    data["gen"] |= {"prompt_token": want.float(), "prompt_token_len": torch.tensor([250.0])}
    data["gen"]["embedding"] = data["gen"]["embedding"].requires_grad_() * 1  # with its graph
    data["t3"] |= {"cond_prompt_speech_emb": torch.randn(1, 150, 64), "emotion_adv": 0.25}
    torch.save(data, tmp_path / "conds.pt")
    voice = Conditionals.load(tmp_path / "conds.pt").check(config)
    assert voice.gen["prompt_token"].dtype == voice.gen["prompt_token_len"].dtype == torch.long
    assert torch.equal(voice.gen["prompt_token"], want)
    assert voice.t3.cond_prompt_speech_emb is None
    assert float(voice.t3.emotion_adv) == 0.25
    assert not voice.gen["embedding"].requires_grad


@pytest.mark.parametrize(("family", "other", "words"), [
    ("tts", "turbo", "375 speech tokens; tts takes 1 to 150"),
    ("turbo", "tts", "150 speech tokens beside 250 for the decoder"),
    ("mtl", "nano", "375 speech tokens; mtl takes 1 to 150"),
])
def test_a_voice_of_another_family_is_refused(family: str, other: str, words: str, tmp_path: Path):
    torch.save(stored(tiny(other)), tmp_path / "conds.pt")
    voice = Conditionals.load(tmp_path / "conds.pt")
    voice.check(tiny(other))
    with pytest.raises(ValueError, match=rf"conds\.pt.*{words}"):
        voice.check(tiny(family), tmp_path / "conds.pt")


def test_bad_voice_files(tmp_path: Path):
    path, config = tmp_path / "conds.pt", tiny("tts")
    with pytest.raises(FileNotFoundError, match="no such voice file"):
        Conditionals.load(path)
    path.write_bytes(b"not a voice")
    with pytest.raises(ValueError, match="not a voice file"):
        Conditionals.load(path)
    torch.save(stored(config), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a voice file"):
        Conditionals.load(path)
    lacking = stored(config, embedding=None)
    for data, missing in ((torch.zeros(3), "t3"), ({"t3": {}}, "speaker_emb"), (lacking, "embedding")):
        torch.save(data, path)
        with pytest.raises(ValueError, match=f"lacks .*{missing}"):
            Conditionals.load(path)
    for name, shape in (("speaker_emb", (1, 192)), ("embedding", (192,)), ("prompt_feat", (1, 500, 128))):
        torch.save(stored(config, **{name: torch.zeros(shape)}), path)
        with pytest.raises(ValueError, match=f"{name} has shape"):
            Conditionals.load(path).check(config)
    for name, bad in (("cond_prompt_speech_tokens", 6561), ("prompt_token", -1)):
        torch.save(stored(config, **{name: torch.full((1, 150), bad)}), path)
        with pytest.raises(ValueError, match=r"conds\.pt: its speech tokens lie outside"):
            Conditionals.load(path)
    for name in ("speaker_emb", "prompt_token", "prompt_feat"):
        torch.save(stored(config, **{name: [1]}), path)
        with pytest.raises(ValueError, match=f"{name} is list"):
            Conditionals.load(path)


def test_a_voice_that_a_program_has_changed_is_looked_at_too(tmp_path: Path):
    """However it comes: as an object, pickled, or unpickled by the program itself."""
    config, path = tiny("tts"), tmp_path / "conds.pt"
    torch.save(stored(config), path)

    def changed(**gen) -> Conditionals:
        voice = Conditionals.load(path).check(config)
        return Conditionals(voice.t3, {**voice.gen, **gen})

    tokens, mel = Conditionals.load(path).gen["prompt_token"], Conditionals.load(path).gen["prompt_feat"]
    for gen in (dict(prompt_token=tokens[:, :-30]), dict(prompt_feat=mel[:, :10]), dict(prompt_feat=mel[:, :-1])):
        with pytest.raises(ValueError, match=r"frames of its mel belong to \d+ tokens"):
            changed(**gen).check(config)
    changed(prompt_feat=torch.cat([mel, mel[:, :1]], 1)).check(config)  # as of a recording that ends inside a token
    with pytest.raises(ValueError, match="its speech tokens lie outside"):
        changed(prompt_token=torch.full_like(tokens, 6561)).check_sound()
    voice = Conditionals.load(path).check(config)
    voice.gen["prompt_token"].fill_(6561)  # after it was looked at
    with pytest.raises(ValueError, match="its speech tokens lie outside"):
        voice.check(config)
    voice = Conditionals.load(path)
    voice.t3.cond_prompt_speech_tokens = torch.full_like(voice.t3.cond_prompt_speech_tokens, 9000)
    with pytest.raises(ValueError, match="its speech tokens lie outside"):
        voice.check(config)
    with pytest.raises(ValueError, match="it has no prompt for T3"):
        Conditionals(T3Cond(voice.t3.speaker_emb), voice.gen).check(config)


def test_moving_makes_a_copy():
    voice = Conditionals(T3Cond(torch.randn(1, 256), emotion_adv=0.5), stored(tiny("tts"))["gen"])
    moved = voice.to("meta")
    assert moved.t3.speaker_emb.is_meta
    assert moved.gen["embedding"].is_meta
    assert moved.gen["prompt_feat_len"] is None
    assert not voice.t3.speaker_emb.is_meta
    assert T3Cond(torch.randn(1, 256), cond_prompt_speech_tokens=torch.ones(1, 2, dtype=torch.long)).to(
        dtype=torch.bfloat16
    ).cond_prompt_speech_tokens.dtype == torch.long
