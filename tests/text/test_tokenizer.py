"""The grapheme tokenizers against upstream's, on vocabularies made here: ids, preparation by language, decoding."""

import logging
import random

import pytest
import torch

from chatterbox_opt.config import MODELS, T3Config
from chatterbox_opt.text.languages import SUPPORTED_LANGUAGES
from chatterbox_opt.text.tokenizer import EnTokenizer, MTLTokenizer, load_tokenizer
from chatterbox_opt.weights.random_vocab import LANGUAGE_TAGS, write_cangjie, write_english, write_multilingual

TEXTS = [
    "", " ", "a", "Hello there, world.", "  two  blanks ", "[START][STOP][UNK][SPACE]", "[laughter] [UH]",
    "line\nbreak\ttab",
    "emoji 😀👩‍👩‍👧", "\x00\x07\x7f", "naïve café ŒUVRE", "e\u0301", "ﬁ ½ ™ ①", "İstanbul ıSPARTA ß", "Ǆ ǆ", "x" * 500,
]
BY_LANGUAGE = {
    "ar": "مرحبا بالعالم، كيف حالك؟", "da": "Rødgrød med fløde på.", "de": "Größe und Übermut, bzw. Spaß.",
    "el": "Καλημέρα κόσμε\u037e",
    "en": "Good morning, world!", "es": "¿Cómo estás, señor?", "fi": "Hyvää päivää.", "fr": "Ça va, œuvre d’été ?",
    "he": "שלום עולם, מה שלומך?", "hi": "नमस्ते दुनिया।", "it": "Perché no?",
    "ja": "今日は東京へ行きます。コンピュータはどこ？",
    "ko": "안녕하세요, 값이 얼마예요?", "ms": "Selamat pagi.", "nl": "Goedemorgen, hè?", "no": "Blåbærsyltetøy.",
    "pl": "Zażółć gęślą jaźń.",
    "pt": "Não, obrigação.", "ru": "Здравствуй, мир! Ёжик и йод.", "sv": "Räksmörgås.", "sw": "Habari ya asubuhi.",
    "tr": "Günaydın İstanbul'da ılık.", "zh": "今天天气很好，我们去公园吧。龘 か ABC 123",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabularies")
    write_english(folder / "tokenizer.json", 704)
    write_multilingual(folder / "grapheme_mtl_merged_expanded_v1.json", 2454, LANGUAGE_TAGS)
    write_cangjie(folder / "Cangjie5_TC.json")
    return folder


@pytest.fixture(scope="module")
def english(folder):
    return EnTokenizer(folder / "tokenizer.json")


@pytest.fixture(scope="module")
def multilingual(folder):
    return MTLTokenizer(folder / "grapheme_mtl_merged_expanded_v1.json")


@pytest.fixture
def theirs(upstream, folder):
    import upstream_tiny

    return upstream_tiny.tokenizer(folder, "tts"), upstream_tiny.tokenizer(folder, "mtl")


def mixtures(n: int = 300) -> list[str]:
    draw = random.Random(0)
    pieces = [*"abcdefgh XYZ.,!?'\n", "é", "ß", "中", "か", "한", "[laughter]", "th", "the", "  "]
    return ["".join(draw.choices(pieces, k=20)) for _ in range(n)]


def test_english_equals_upstream(english, theirs):
    for text in TEXTS + mixtures():
        wanted = theirs[0].text_to_tokens(text)
        got = english.text_to_tokens(text)
        assert torch.equal(got, wanted), repr(text)
        assert got.dtype == wanted.dtype
        assert english.encode(text) == theirs[0].encode(text)
        assert english.decode(got[0]) == theirs[0].decode(wanted[0])
        assert english.decode(got[0].tolist()) == theirs[0].decode(wanted[0].tolist())


@pytest.mark.parametrize("language", [*BY_LANGUAGE, None, ""])
def test_multilingual_equals_upstream(multilingual, theirs, language):
    own = [BY_LANGUAGE[language]] if language else []
    for text in own + TEXTS + mixtures(50):
        for switches in ({}, {"lowercase": False}, {"nfkd_normalize": False}):
            wanted = theirs[1].text_to_tokens(text, language_id=language, **switches)
            got = multilingual.text_to_tokens(text, language_id=language, **switches)
            assert torch.equal(got, wanted), (repr(text), switches)
            assert multilingual.decode(got[0]) == theirs[1].decode(wanted[0])
        assert multilingual.preprocess_text(text) == theirs[1].preprocess_text(text)


def test_the_languages_are_upstreams(upstream):
    from chatterbox.mtl_tts import SUPPORTED_LANGUAGES as WANTED

    assert SUPPORTED_LANGUAGES == WANTED
    assert set(BY_LANGUAGE) == set(SUPPORTED_LANGUAGES) == set(LANGUAGE_TAGS)


def test_every_language_has_a_tag_of_its_own(multilingual):
    first = {lang: multilingual.encode(text, lang)[0] for lang, text in BY_LANGUAGE.items()}
    assert len(set(first.values())) == 23
    assert multilingual.decode([first["fr"]]) == "[fr]"


def test_chinese_is_spelt_out(multilingual):
    assert "[cj_" in multilingual.decode(multilingual.encode("天气", "zh"))
    assert "[cj_" not in multilingual.decode(multilingual.encode("天气", "ja"))


def test_half_a_surrogate_pair(english, multilingual):
    assert english.encode("a\ud83d b") == english.encode("a\ufffd b")
    assert multilingual.encode("a\udc00", "fr") == multilingual.encode("a\ufffd", "fr")


def test_more_tokens_than_positions_are_refused(english, multilingual):
    for tokenizer, args in ((english, ()), (multilingual, ("fr",))):
        room = T3Config().text_positions - 2 - len(args)
        assert tokenizer.text_to_tokens("1" * room, *args).shape == (1, 2048)
        with pytest.raises(ValueError, match=r"'1111.*2049 text tokens long; the model has positions for 2048: split"):
            tokenizer.text_to_tokens("1" * (room + 1), *args)


def test_load_tokenizer_by_family(folder, tmp_path, caplog):
    assert type(load_tokenizer(folder, MODELS["tts"])) is EnTokenizer
    assert type(load_tokenizer(folder, MODELS["mtl"])) is MTLTokenizer
    assert not caplog.records
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing"):
        load_tokenizer(tmp_path, MODELS["tts"])
    with pytest.raises(FileNotFoundError, match="grapheme_mtl"):
        load_tokenizer(tmp_path, MODELS["mtl"])
    write_english(tmp_path / "grapheme_fr.json", 704)  # a single-language pack's
    assert type(load_tokenizer(tmp_path, MODELS["mtl"])) is MTLTokenizer
    write_english(tmp_path / "tokenizer.json", 720)
    with caplog.at_level(logging.WARNING):
        load_tokenizer(tmp_path, MODELS["tts"])
    assert "720 entries, the model 704" in caplog.text


def test_a_foreign_vocabulary_is_refused(tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    Tokenizer(BPE(vocab={"a": 0, "[STOP]": 1}, merges=[])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"has no \[START\]"):
        EnTokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="not a tokenizers vocabulary"):
        EnTokenizer(tmp_path / "tokenizer.json")
