"""Tokenizers: the grapheme BPE of the Llama models, and the GPT-2 BPE of Turbo and Nano."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from torch import Tensor

from ..config import ModelConfig
from .languages import Cangjie, prepare
from .word_rules import WordRules

logger = logging.getLogger(__name__)

SOT, EOT, UNK, SPACE = "[START]", "[STOP]", "[UNK]", "[SPACE]"
MAX_TOKENS = 2048  # the learned position table of the Llama models, less start and end token
MTL_VOCAB = "grapheme_mtl_merged_expanded_v1.json"
CANGJIE = "Cangjie5_TC.json"
UNLIMITED = int(1e30)  # what transformers writes for "no model_max_length"


class EnTokenizer:
    """English: case is kept, blanks are spelt `[SPACE]`."""

    def __init__(self, vocab_file_path: str | Path, max_tokens: int = MAX_TOKENS) -> None:
        self.vocab_file_path, self.max_tokens = Path(vocab_file_path), max_tokens
        self.tokenizer = _read(self.vocab_file_path)
        self.words = WordRules.of(self.tokenizer)
        self.check_vocabset_sot_eot()

    def check_vocabset_sot_eot(self) -> None:
        missing = [t for t in (SOT, EOT) if self.tokenizer.token_to_id(t) is None]
        if missing:
            raise ValueError(f"{self.vocab_file_path} has no {' and no '.join(missing)}: not a Chatterbox vocabulary")

    def text_to_tokens(self, text: str) -> Tensor:
        """Returns (1, T) int32, without start and end token."""
        return self._checked(self.encode(text), text)

    def encode(self, txt: str) -> list[int]:
        text = _encodable(txt)
        ids = self.words.ids(text, SPACE) if self.words is not None else None
        return self.tokenizer.encode(text.replace(" ", SPACE)).ids if ids is None else ids

    def decode(self, seq: Tensor | Sequence[int]) -> str:
        ids = seq.flatten().tolist() if isinstance(seq, Tensor) else list(seq)
        text = self.tokenizer.decode(ids, skip_special_tokens=False)
        return text.replace(" ", "").replace(SPACE, " ").replace(EOT, "").replace(UNK, "")

    def _checked(self, ids: list[int], text: str) -> Tensor:
        if len(ids) > self.max_tokens:
            raise ValueError(
                f"{text[:40]!r}... is {len(ids)} text tokens long; the model has positions for {self.max_tokens}: "
                "split the text, or let generate() split it (max_chars)"
            )
        return torch.tensor(ids, dtype=torch.int32).unsqueeze(0)


class MTLTokenizer(EnTokenizer):
    """23 languages: text is lower-cased, decomposed, prepared by language, and begins with the language's tag."""

    def __init__(
        self, vocab_file_path: str | Path, cangjie_path: str | Path | None = None, max_tokens: int = MAX_TOKENS
    ) -> None:
        super().__init__(vocab_file_path, max_tokens)
        self.cangjie_converter = Cangjie(cangjie_path or self.vocab_file_path.parent / CANGJIE)

    def preprocess_text(
        self, raw_text: str, language_id: str | None = None, lowercase: bool = True, nfkd_normalize: bool = True
    ) -> str:
        text = raw_text.lower() if lowercase else raw_text
        return normalize("NFKD", text) if nfkd_normalize else text

    def text_to_tokens(
        self, text: str, language_id: str | None = None, lowercase: bool = True, nfkd_normalize: bool = True
    ) -> Tensor:
        return self._checked(self.encode(text, language_id, lowercase, nfkd_normalize), text)

    def encode(
        self, txt: str, language_id: str | None = None, lowercase: bool = True, nfkd_normalize: bool = True
    ) -> list[int]:
        text = self.preprocess_text(_encodable(txt), language_id, lowercase, nfkd_normalize)
        text = prepare(text, language_id, self.cangjie_converter)
        return super().encode(f"[{language_id.lower()}]{text}" if language_id else text)


class Encoded(dict):
    """The result of calling a `TurboTokenizer`: `input_ids` and `attention_mask`, by key or attribute."""

    __getattr__ = dict.__getitem__


class TurboTokenizer:
    """GPT-2's byte-level BPE with Chatterbox' added tokens, from the Hugging Face files of a folder.

    Ids equal transformers.AutoTokenizer's, and it can be called like one.
    """

    def __init__(self, folder: str | Path, max_positions: int | None = None) -> None:
        self.folder = Path(folder)
        config = _json(self.folder / "tokenizer_config.json") or {}
        # Older folders keep these in a file of their own; a configuration that lists its tokens is complete.
        older = {} if "added_tokens_decoder" in config else _json(self.folder / "special_tokens_map.json") or {}
        special = {**config, **older}
        names = {k: _content(special.get(k)) or "<|endoftext|>" for k in ("unk_token", "bos_token", "eos_token")}
        self.tokenizer = self._build(config, names["bos_token"])
        self.tokenizer.add_tokens(self._added(config, special, names))
        self.eos_token = names["eos_token"]
        self.pad_token = _content(special.get("pad_token")) or self.eos_token
        limit = min(config.get("model_max_length") or UNLIMITED, UNLIMITED)
        self.model_max_length = min(limit, max_positions or UNLIMITED)

    def _build(self, config: dict[str, Any], bos: str) -> Tokenizer:
        if (self.folder / "tokenizer.json").is_file():
            tokenizer = _read(self.folder / "tokenizer.json")
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return tokenizer
        vocab, merges = self.folder / "vocab.json", self.folder / "merges.txt"
        if not vocab.is_file() or not merges.is_file():
            raise FileNotFoundError(
                f"{self.folder} has no tokenizer: tokenizer.json, or vocab.json with merges.txt, is needed"
            )
        tokenizer = Tokenizer(BPE.from_file(str(vocab), str(merges)))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=config.get("add_prefix_space", False))
        tokenizer.decoder = decoders.ByteLevel()
        if config.get("add_bos_token"):
            tokenizer.add_special_tokens([bos])
            tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 {bos}:1 $B:1",
                special_tokens=[(bos, tokenizer.token_to_id(bos))],
            )
        return tokenizer

    def _added(self, config: dict[str, Any], special: dict[str, Any], names: dict[str, str]) -> list[AddedToken]:
        """Returns the added tokens in the order of their ids: those outside the vocabulary are numbered in order."""
        extra = [*(special.get("additional_special_tokens") or []), *(special.get("extra_special_tokens") or [])]
        named = [*names.values(), *filter(None, map(_content, [special.get("pad_token"), *extra]))]
        if "added_tokens_decoder" in config:
            rows = sorted((int(i), t) for i, t in config["added_tokens_decoder"].items())
            added = [AddedToken(t.pop("content"), **t) for t in (dict(t) for _, t in rows)]
        else:
            listed = _json(self.folder / "added_tokens.json") or {}
            added = [
                AddedToken(t, normalized=t not in named, special=t in named)
                for t in sorted(listed, key=listed.__getitem__)
            ]
        known = {t.content for t in added} | {t.content for t in self.tokenizer.get_added_tokens_decoder().values()}
        return added + [AddedToken(t, special=True) for t in dict.fromkeys(named) if t not in known]

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size(with_added_tokens=True)

    def get_vocab(self) -> dict[str, int]:
        return self.tokenizer.get_vocab(with_added_tokens=True)

    @property
    def pad_token_id(self) -> int | None:
        return self.tokenizer.token_to_id(self.pad_token)

    def __call__(
        self,
        text: str | Sequence[str],
        return_tensors: str | None = None,
        padding: bool = False,
        truncation: bool = False,
        **unused: Any,
    ) -> Encoded:
        rows = [self._ids(t, truncation) for t in ([text] if isinstance(text, str) else text)]
        width = max(map(len, rows), default=0) if padding else 0
        masks = [[1] * len(r) + [0] * (width - len(r)) for r in rows]
        rows = [r + [self.pad_token_id] * (width - len(r)) for r in rows]  # type: ignore[list-item]  # there is one
        if return_tensors is None:
            single = isinstance(text, str)
            return Encoded(input_ids=rows[0] if single else rows, attention_mask=masks[0] if single else masks)
        if return_tensors != "pt":
            raise ValueError(f"return_tensors={return_tensors!r}: choose None or 'pt'")
        return Encoded(input_ids=torch.tensor(rows).long(), attention_mask=torch.tensor(masks).long())

    def text_to_tokens(self, text: str) -> Tensor:
        """Returns (1, T) int64; Turbo's text has no start and end token."""
        return self(text, return_tensors="pt", truncation=True)["input_ids"]

    def encode(self, text: str) -> list[int]:
        return self._ids(text, truncation=True)

    def decode(self, token_ids: Tensor | Sequence[int], skip_special_tokens: bool = False) -> str:
        ids = token_ids.flatten().tolist() if isinstance(token_ids, Tensor) else list(token_ids)
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def _ids(self, text: str, truncation: bool) -> list[int]:
        ids = self.tokenizer.encode(_encodable(text)).ids
        if truncation and len(ids) > self.model_max_length:
            kept = ids[: self.model_max_length]
            logger.warning(
                "%d text tokens, but the model reads %d: what follows %r is not spoken; split the text",
                len(ids), len(kept), self.decode(kept[-12:]),
            )
            return kept
        return ids


def load_tokenizer(folder: str | Path, config: ModelConfig) -> EnTokenizer | MTLTokenizer | TurboTokenizer:
    """Returns the tokenizer of a checkpoint folder; warns if it does not fit the model."""
    folder = Path(folder)
    tokenizer: Any
    if config.t3.is_gpt:
        tokenizer = TurboTokenizer(folder, config.t3.max_positions - config.t3.prefix_len)
        size = len(tokenizer)
    else:
        limit = config.t3.text_positions - 2
        if config.family == "mtl":
            tokenizer = MTLTokenizer(_multilingual_vocabulary(folder), max_tokens=limit)
        else:
            tokenizer = EnTokenizer(folder / "tokenizer.json", limit)
        size = tokenizer.tokenizer.get_vocab_size()
    if size > config.t3.text_vocab or (config.t3.is_gpt and size < config.t3.text_vocab):
        logger.warning("%s: the tokenizer has %d entries, the model %d", folder, size, config.t3.text_vocab)
    return tokenizer


def _multilingual_vocabulary(folder: Path) -> Path:
    """Returns the vocabulary file, which a single-language pack may name differently."""
    if (folder / MTL_VOCAB).is_file():
        return folder / MTL_VOCAB
    others = [*sorted(folder.glob("grapheme*.json")), *folder.glob("tokenizer.json")]
    return others[0] if others else folder / MTL_VOCAB


def _read(path: Path) -> Tokenizer:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the model's vocabulary belongs there")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{path} is not a tokenizers vocabulary: {error}") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _content(token: Any) -> str | None:
    """Returns the text of a token entry, which is a string or a dict with flags."""
    return token.get("content") if isinstance(token, dict) else token


def _encodable(text: str) -> str:
    """Replaces half surrogate pairs, which cannot be encoded, by the replacement character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
