"""Turbo's BPE against transformers.AutoTokenizer, on a vocabulary small enough to train here."""

import json
import logging
import random
from pathlib import Path

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer

from chatterbox_opt.text.tokenizer import TurboTokenizer

CORPUS = ["the quick brown fox jumps over the lazy dog", "don't you'll we've it's I'm", "1234 567 8.90",
    "naïve café über",
          "日本語 中文 한국어 русский عربى", "hello hello world world", "a  b   c\n\nd\te",
          "laughing [laugh] chuckles"] * 4
TAGS = ["[laugh]", "[chuckle]", "[clear throat]", "[sigh]"]
TEXTS = [
    "", " ", "  ", "\n", "a", "Hello world", " Hello world", "Hello  world ", "don't YOU'LL we'Ve", "x\ty\r\nz",
    "[laugh]", "hi [laugh] there",
    "hi[laugh]there", "[laugh][sigh]", "[Laugh] [ laugh ]", "[clear throat] ok", "<|endoftext|>", "a<|endoftext|>b",
    "1,234.5 678",
    "naïve café", "e\u0301", "日本語テスト", "한국어", "русский текст", "مرحبا", "😀 👩‍👩‍👧", "\x00\x01\x7f",
    "\u200b\ufeff", "…—“”", "!!!???...",
    "a" * 300, "'s 't 're", "\u3000wide\u2003space", "__x__ --y-- ##", "http://a.b/c?d=e&f",
]


def flags(content: str, special: bool, **changes) -> dict:
    plain = dict(lstrip=False, rstrip=False, single_word=False, normalized=not special)
    return {"content": content, "special": special, **plain, **changes}


def write(folder: Path, layout: str) -> Path:
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(CORPUS, vocab_size=400, min_frequency=1, special_tokens=["<|endoftext|>"])
    trained.save_model(str(folder))
    size = trained.get_vocab_size()
    config = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 50, "add_prefix_space": False,
        "add_bos_token": False,
              "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    if layout == "bos":
        config["add_bos_token"] = True
    if layout == "prefix":
        config["add_prefix_space"] = True
    if layout == "legacy":
        (folder / "added_tokens.json").write_text(json.dumps({t: size + i for i, t in reversed(list(enumerate(TAGS)))}))
        (folder / "special_tokens_map.json").write_text(
            json.dumps(dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
                       | {"additional_special_tokens": TAGS[:2]}))
    else:
        added = {"0": flags("<|endoftext|>", True, normalized=layout == "flags")}
        for i, tag in enumerate(TAGS):
            changes = dict(lstrip=i == 0, rstrip=i == 1, single_word=i == 3) if layout == "flags" else {}
            added[str(size + i)] = flags(tag, i % 2 == 0, **changes)
        config["added_tokens_decoder"] = added
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if layout == "json":
        TurboTokenizer(folder).tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "vocab.json").unlink()
        (folder / "merges.txt").unlink()
    return folder


@pytest.fixture(scope="module")
def auto():
    return pytest.importorskip("transformers", reason="transformers is not installed").AutoTokenizer


@pytest.mark.parametrize("layout", ["plain", "legacy", "flags", "json", "bos", "prefix"])
def test_ids_equal_autotokenizer(tmp_path, auto, layout):
    ours, theirs = TurboTokenizer(write(tmp_path, layout)), auto.from_pretrained(tmp_path)
    assert len(ours) == len(theirs)
    assert ours.get_vocab() == theirs.get_vocab()
    draw = random.Random(0)
    random_texts = ["".join(draw.choices([*"abc XY'.,!\n", *TAGS, "é", "日", "the "], k=12)) for _ in range(300)]
    for text in TEXTS + random_texts:
        wanted = theirs(text, return_tensors="pt", padding=False, truncation=True)["input_ids"]
        got = ours(text, return_tensors="pt", truncation=True)["input_ids"]
        assert got.tolist() == wanted.tolist(), repr(text)
        assert ours.decode(got[0]) == theirs.decode(wanted[0], clean_up_tokenization_spaces=False)


def test_call_like_upstream_calls_it(tmp_path, auto):
    ours, theirs = TurboTokenizer(write(tmp_path, "plain")), auto.from_pretrained(tmp_path)
    theirs.pad_token = theirs.eos_token
    for text in ("hello world", ["hello", "hello hello world world"]):
        got = ours(text, return_tensors="pt", padding=True, truncation=True)
        wanted = theirs(text, return_tensors="pt", padding=True, truncation=True)
        assert torch.equal(got.input_ids, wanted.input_ids)
        assert torch.equal(got["attention_mask"], wanted["attention_mask"])
        assert got.input_ids.dtype == torch.int64
    assert ours("hello").input_ids == theirs("hello").input_ids
    assert (ours.pad_token, ours.pad_token_id) == (theirs.pad_token, theirs.pad_token_id)


def test_truncation_is_reported(tmp_path, caplog):
    tokenizer = TurboTokenizer(write(tmp_path, "plain"))
    with caplog.at_level(logging.WARNING):
        assert tokenizer.text_to_tokens("z" * 50).shape == (1, 50)
        assert not caplog.records
        assert tokenizer.text_to_tokens("z" * 51).shape == (1, 50)
    assert "51 text tokens, but the model reads 50" in caplog.text


def test_what_is_wrong_with_a_folder_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="merges"):
        TurboTokenizer(tmp_path)
    write(tmp_path, "plain")
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        TurboTokenizer(tmp_path)


def test_half_a_surrogate_pair(tmp_path):
    tokenizer = TurboTokenizer(write(tmp_path, "plain"))
    assert tokenizer.encode("a\ud83d b") == tokenizer.encode("a\ufffd b")
