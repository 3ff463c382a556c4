"""Downloads from an imitated hub: what is requested, what is not, and errors if there is no answer."""

import logging
import socket
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from chatterbox_opt.config import MODELS
from chatterbox_opt.weights import hub
from chatterbox_opt.weights.files import REPOS, multilingual_t3

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TTS = ["ve.safetensors", "t3_cfg.safetensors", "s3gen.safetensors", "tokenizer.json", "conds.pt"]
GPT2 = ["vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"]
REPO_FILES = {
    "ResembleAI/chatterbox": [
        *TTS, "ve.pt", "s3gen.pt", "t3_mtl23ls_v2.safetensors", "t3_mtl23ls_v3.safetensors", "t3_cfg.pt",
        "grapheme_mtl_merged_expanded_v1.json", "Cangjie5_TC.json", "README.md",
    ],
    "ResembleAI/chatterbox-turbo": [
        "ve.safetensors", "t3_turbo_v1.safetensors", "s3gen_meanflow.safetensors", "s3gen.safetensors", "conds.pt",
        *GPT2,
    ],
    "ResembleAI/chatterbox-nano": [
        "ve.safetensors", "t3_nano_v1.safetensors", "s3gen_meanflow.safetensors", "conds.pt", *GPT2,
    ],
    "someone/french": ["ve.pt", "t3_fr.safetensors", "s3gen.pt", "grapheme_fr.json"],
    "someone/cats": ["model.safetensors"],
}


def fill(cache: Path, repo: str, names: list[str]) -> Path:
    root = cache / ("models--" + repo.replace("/", "--"))
    folder = root / "snapshots" / COMMIT
    folder.mkdir(parents=True, exist_ok=True)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text(COMMIT)
    for name in names:
        (folder / name).touch()
    return folder


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def fake_hub(monkeypatch):
    """A hub that lists REPO_FILES and fills the cache; requests are in `calls`."""
    calls = []

    def model_info(self, repo, revision=None, timeout=None):
        assert timeout <= 10
        calls.append(("list", repo, self.token))
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=n) for n in REPO_FILES[repo]])

    def snapshot_download(repo_id, revision, cache_dir, allow_patterns, token):
        calls.append(("get", repo_id, token))
        return str(fill(Path(cache_dir), repo_id, [n for n in REPO_FILES[repo_id] if n in allow_patterns]))

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


WANTED = {
    "tts": set(TTS),
    "vc": {"s3gen.safetensors", "conds.pt"},
    "mtl": {
        "ve.safetensors", "s3gen.safetensors", "t3_mtl23ls_v2.safetensors", "grapheme_mtl_merged_expanded_v1.json",
        "conds.pt", "Cangjie5_TC.json",
    },
    "turbo": {"ve.safetensors", "t3_turbo_v1.safetensors", "s3gen_meanflow.safetensors", "conds.pt", *GPT2},
    "nano": {"ve.safetensors", "t3_nano_v1.safetensors", "s3gen_meanflow.safetensors", "conds.pt", *GPT2},
}


@pytest.mark.parametrize("family", WANTED)
def test_gets_what_the_family_needs_once(tmp_path, fake_hub, family):
    folder = hub.download(family, cache_dir=tmp_path)
    got = {p.name for p in folder.iterdir()}
    assert WANTED[family] <= got
    assert not got & {"ve.pt", "s3gen.pt", "t3_cfg.pt", "README.md"}, "twins and extras are left where they are"
    assert [c[0] for c in fake_hub] == ["list", "get"]
    assert hub.download(family, cache_dir=tmp_path) == folder
    assert len(fake_hub) == 2, "the second time nobody is asked"


@pytest.mark.parametrize("family", WANTED)
def test_a_full_cache_needs_no_network(tmp_path, no_network, family):
    folder = fill(tmp_path, REPOS[family], REPO_FILES[REPOS[family]])
    assert hub.download(family, cache_dir=tmp_path) == folder


def test_what_upstream_cached_is_enough(tmp_path, no_network):
    names = ["ve.pt", "t3_mtl23ls_v2.safetensors", "s3gen.pt", "grapheme_mtl_merged_expanded_v1.json", "conds.pt",
             "Cangjie5_TC.json"]
    folder = fill(tmp_path, REPOS["mtl"], names)
    assert hub.download("mtl", cache_dir=tmp_path) == folder


def test_a_cache_with_holes_is_completed(tmp_path, fake_hub):
    fill(tmp_path, REPOS["tts"], TTS[:3])
    folder = hub.download("tts", cache_dir=tmp_path)
    assert {p.name for p in folder.iterdir()} == set(TTS)


def test_files_whose_contents_are_gone_are_fetched_again(tmp_path, fake_hub):
    """In the hub's cache names are links to blobs, which may have been pruned, or left out of a copy."""
    folder = fill(tmp_path, REPOS["tts"], TTS)
    (tmp_path / "blobs").mkdir()
    for name in ("t3_cfg.safetensors", "conds.pt"):
        (folder / name).unlink()
        (folder / name).symlink_to(tmp_path / "blobs" / name)
    hub.download("tts", cache_dir=tmp_path)
    assert [c[0] for c in fake_hub] == ["list", "get"]
    assert all((folder / name).exists() for name in TTS)


@pytest.mark.parametrize("family", ["turbo", "nano"])
@pytest.mark.parametrize("missing", GPT2[1:])
def test_a_tokenizer_of_which_a_part_is_missing_is_completed(tmp_path, fake_hub, family, missing):
    """As after a download that was interrupted: without merges.txt nothing can be spelled, whenever it is loaded."""
    fill(tmp_path, REPOS[family], [name for name in REPO_FILES[REPOS[family]] if name != missing])
    assert (hub.download(family, cache_dir=tmp_path) / missing).exists()


def test_a_tokenizer_without_merges_is_no_usable_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refused)
    fill(tmp_path, REPOS["turbo"], [name for name in REPO_FILES[REPOS["turbo"]] if name != "merges.txt"])
    with pytest.raises(hub.HubUnreachable):
        hub.download("turbo", cache_dir=tmp_path)


def refused(*_, **__):
    raise OSError("no network")


def test_the_two_step_decoder_is_one_file_of_turbos(tmp_path, fake_hub):
    file = hub.download_decoder(cache_dir=tmp_path)
    assert {p.name for p in file.parent.iterdir()} == {"s3gen_meanflow.safetensors"} == {file.name}
    assert [c[:2] for c in fake_hub] == [("list", REPOS["turbo"]), ("get", REPOS["turbo"])]
    assert hub.download_decoder(cache_dir=tmp_path) == file
    assert len(fake_hub) == 2, "the second time nobody is asked"


def test_a_cached_turbo_has_the_decoder(tmp_path, no_network):
    folder = fill(tmp_path, REPOS["turbo"], REPO_FILES[REPOS["turbo"]])
    assert hub.download_decoder(cache_dir=tmp_path) == folder / "s3gen_meanflow.safetensors"


def test_a_decoder_out_of_reach(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: 1 / 0)
    with pytest.raises(hub.HubUnreachable, match=REPOS["turbo"]):
        hub.download_decoder(cache_dir=tmp_path)


def test_a_decoder_alone_is_not_taken_for_turbo(tmp_path, fake_hub):
    hub.download_decoder(cache_dir=tmp_path)
    got = {p.name for p in hub.download("turbo", cache_dir=tmp_path).iterdir()}
    assert WANTED["turbo"] <= got


def test_nobody_answers(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("[Errno -2] Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    with pytest.raises(hub.HubUnreachable, match=r"Name or service.*from_local.*from_random.*HF_HOME"):
        hub.download("tts", cache_dir=tmp_path)


def test_without_a_network_a_usable_cache_is_used(tmp_path, monkeypatch, caplog):
    folder = fill(tmp_path, REPOS["tts"], [n for n in TTS if n != "conds.pt"])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: 1 / 0)
    with caplog.at_level(logging.WARNING):
        assert hub.download("tts", cache_dir=tmp_path) == folder
    assert "using the cache" in caplog.text


def test_a_refusal_names_the_token(tmp_path, monkeypatch):
    class GatedRepoError(Exception):
        pass

    def refuse(*_, **__):
        raise GatedRepoError("401")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(hub.HubUnreachable, match="HF_TOKEN"):
        hub.download("turbo", cache_dir=tmp_path)


def test_the_token_is_passed_on(tmp_path, fake_hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.download("tts", cache_dir=tmp_path)
    assert {c[2] for c in fake_hub} == {"hf_secret"}


def test_xet_failures_fall_back_to_http(tmp_path, fake_hub, monkeypatch, caplog):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False, raising=False)
    working = huggingface_hub.snapshot_download

    def broken_once(**how):
        if not constants.HF_HUB_DISABLE_XET:
            raise RuntimeError("Unable to parse string as hex hash value")
        return working(**how)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken_once)
    with caplog.at_level(logging.WARNING):
        assert (hub.download("tts", cache_dir=tmp_path) / "conds.pt").exists()
    assert "plain HTTP" in caplog.text


def test_other_repositories(tmp_path, fake_hub):
    folder = hub.download("mtl", repo_id="someone/french", cache_dir=tmp_path)
    assert {p.name for p in folder.iterdir()} == set(REPO_FILES["someone/french"]), "a pack names its files as it likes"
    hub.download("mtl", repo_id="someone/french", cache_dir=tmp_path)
    assert len(fake_hub) == 2
    with pytest.raises(hub.NotInRepository, match=r"no t3_cfg.*model\.safetensors"):
        hub.download("tts", repo_id="someone/cats", cache_dir=tmp_path)


def test_multilingual_t3_names(tmp_path, fake_hub):
    assert multilingual_t3(None) is None
    assert multilingual_t3("v2") == multilingual_t3("t3_mtl23ls_v2") == "t3_mtl23ls_v2.safetensors"
    assert multilingual_t3("v3") == "t3_mtl23ls_v3.safetensors"
    assert multilingual_t3("mine.safetensors") == "mine.safetensors"
    with pytest.raises(ValueError, match=r"t3_model='v9'.*v2.*v3"):
        multilingual_t3("v9")
    folder = hub.download("mtl", t3_model="v3", cache_dir=tmp_path)
    assert (folder / "t3_mtl23ls_v3.safetensors").exists()
    assert not (folder / "t3_mtl23ls_v2.safetensors").exists()


def test_every_family_has_a_repository():
    assert set(REPOS) == {*MODELS, "vc"}
