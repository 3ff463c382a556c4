"""Checkpoint folders with seeded random weights, in the published format: for tests, timings, and offline trials.

With plain initialisation T3's logits are almost flat and its attention uniform for any input, so that equal tokens
would prove nothing. The scales below make every part matter and keep the sound finite.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ..computing import computing
from ..config import (
    MEL_BINS,
    MODELS,
    S3_RATE,
    SPEAKER_DIM,
    SPEECH_CODES,
    STOP_SPEECH,
    TOKEN_RATE,
    XVECTOR_DIM,
    ModelConfig,
    T3Config,
    tiny,
)
from ..files import naming
from ..models.mel import slaney_filters
from . import layout, safefile
from .files import CONFIG, DECODERS, FILES, MEANFLOW, OPTIONAL
from .random_vocab import LANGUAGE_TAGS, write_cangjie, write_english, write_gpt2, write_multilingual

SIZES = ("tiny", "full")
Init = Callable[[tuple[int, ...], torch.Generator], Tensor]
Table = list[tuple[str, Init]]  # the first pattern that matches a whole key says how it is drawn


@computing(torch.device("cpu"))
def write_checkpoint(
    folder: str | Path, family: str = "tts", size: str = "tiny", seed: int = 0, decoder: str | None = None
) -> Path:
    """Writes a folder that `from_local` loads; at full size upstream loads it too. Tensors are written as they are
    drawn. `decoder="meanflow"` adds the two-step decoder."""
    if family not in MODELS:
        raise ValueError(f"family={family!r}: choose one of {', '.join(MODELS)}")
    if size not in SIZES:
        raise ValueError(f"size={size!r}: choose one of {', '.join(SIZES)}")
    if decoder not in (None, *DECODERS):
        raise ValueError(f"decoder={decoder!r}: choose one of {', '.join(DECODERS)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"{folder}: it is not empty; a new folder is needed, so that no checkpoint is written over")
    try:
        with naming(folder, folder):
            _write_files(folder, family, size, seed, decoder)
    except BaseException:  # half a checkpoint would be in the way of the next try
        for path in folder.iterdir():
            path.unlink()
        raise
    return folder


def _write_files(folder: Path, family: str, size: str, seed: int, decoder: str | None) -> None:
    config = MODELS[family] if size == "full" else tiny(family)
    names = FILES[family]
    _write(folder / names["t3"], layout.t3(config.t3), _t3_table(config.t3), seed)
    # Upstream's multilingual loader reads pickles of these two.
    suffix = ".pt" if family == "mtl" else ".safetensors"
    _write((folder / names["ve"]).with_suffix(suffix), layout.voice_encoder(config.voice_encoder), _VOICE_ENCODER, seed)
    _write((folder / names["s3gen"]).with_suffix(suffix), layout.s3gen(config), _S3GEN, seed)
    if decoder == "meanflow" and names["s3gen"] != MEANFLOW:
        two_step = dataclasses.replace(config, flow=dataclasses.replace(config.flow, meanflow=True))
        _write(folder / MEANFLOW, layout.s3gen(two_step), _S3GEN, seed)
    torch.save(_conditionals(config, 10 if size == "full" else 2, seed), folder / OPTIONAL["conds"])
    _write_vocabulary(folder, config)
    if size != "full":  # published sizes are known
        (folder / CONFIG).write_text(json.dumps(config.to_dict(), indent=1))


@contextmanager
def random_folder(family: str, size: str, seed: int, decoder: str | None = None) -> Iterator[Path]:
    """Yields a temporary checkpoint folder, deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="chatterbox-random-") as folder:
        yield write_checkpoint(folder, family, size, seed, decoder)


def _write(path: Path, wanted: layout.Layout, table: Table, seed: int) -> None:
    tensors = (_draw(key, shape, table, seed) for key, shape in wanted.items())
    if path.suffix == ".pt":
        torch.save(dict(zip(wanted, tensors)), path)
    else:
        counted = {k: torch.int64 if k.endswith(layout.BATCH_COUNT) else torch.float32 for k in wanted}
        safefile.write(path, {k: (counted[k], shape) for k, shape in wanted.items()}, tensors)


def _draw(key: str, shape: tuple[int, ...], table: Table, seed: int) -> Tensor:
    """Returns a random tensor. Each key has its own generator, so that a tensor does not depend on earlier ones."""
    init = next(init for pattern, init in [*table, *_ANY] if re.fullmatch(pattern, key))
    mixed = zlib.crc32(f"{seed} {key}".encode())  # the CPU's generator uses only 32 bits of a seed
    return init(shape, torch.Generator().manual_seed(mixed))


def _conditionals(config: ModelConfig, seconds: int, seed: int) -> dict[str, dict]:
    """Returns a made-up voice: an embedding like the encoder's, random speech tokens, and mels at the usual level."""
    g = torch.Generator().manual_seed(seed & 0x7FFFFFFF)
    speaker = torch.randn(1, SPEAKER_DIM, generator=g).clamp(min=0)
    n = seconds * TOKEN_RATE
    return {
        "t3": {
            "speaker_emb": speaker / speaker.norm(),
            "clap_emb": None,
            "cond_prompt_speech_tokens": torch.randint(SPEECH_CODES, (1, config.t3.prompt_tokens), generator=g),
            "cond_prompt_speech_emb": None,
            "emotion_adv": torch.full((1, 1, 1), 0.5),
        },
        "gen": {
            "prompt_token": torch.randint(SPEECH_CODES, (1, n), generator=g),
            "prompt_token_len": torch.tensor([n]),
            "prompt_feat": torch.randn(1, 2 * n, MEL_BINS, generator=g) * 2 - 5,
            "prompt_feat_len": None,
            "embedding": torch.randn(1, XVECTOR_DIM, generator=g),
        },
    }


def _write_vocabulary(folder: Path, config: ModelConfig) -> None:
    size = config.t3.text_vocab
    if config.t3.is_gpt:
        write_gpt2(folder, size)
    elif config.family == "mtl":
        write_multilingual(folder / FILES["mtl"]["tokenizer"], size, LANGUAGE_TAGS)
        write_cangjie(folder / OPTIONAL["cangjie"])
    else:
        write_english(folder / FILES["tts"]["tokenizer"], size)


# ---- how each tensor is drawn --------------------------------------------------------------------


def normal(gain: float = 1.0, mean: float = 0.0) -> Init:
    """Returns an initialisation with which unit inputs give outputs of size `gain`."""
    return lambda shape, g: mean + _randn(shape, g) * (gain / math.sqrt(math.prod(shape[1:])))


def around(mean: float, spread: float) -> Init:
    return lambda shape, g: mean + _randn(shape, g) * spread


def _randn(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


# Of T3, found by trial with tiny and full sizes: the logits depend on every text token, voice, exaggeration, guidance
# and both position tables, and yet a rounding error of the weights changes them only by its own size.
ATT, MLP = 4.0, 1.4  # what attention and feed-forward add to the residual stream over all layers
QK = 1.4  # attention scores spread by its square
SEEK, PULL = 4.0, 0.4  # preference for text and emotion; share of their embeddings that marks them


def _t3_table(cfg: T3Config) -> Table:
    # Each layer adds to a residual stream that starts at about 1; early input stays visible at any depth.
    attended, fed = ATT / math.sqrt(cfg.layers), MLP / math.sqrt(cfg.layers)
    seeks, sought = _direction(cfg.dim, 4), _direction(cfg.dim, 2)  # shared by all queries; attracts them
    key, query = _seeking(cfg, sought), _seeking(cfg, seeks)
    return [
        (r"tfmr\.(embed_tokens|wte)\.weight", around(0.0, 0.02)),  # unused
        (r"tfmr\..*(norm|ln_[12f])\.weight", around(1.0, 0.1)),
        (r"tfmr\.wpe\.weight|.*_pos_emb\.emb\.weight", around(0.0, 0.5)),
        (r"text_emb\.weight", lambda shape, g: _randn(shape, g) + PULL * (seeks + sought)),
        (r"speech_emb\.weight", lambda shape, g: _randn(shape, g) + PULL * seeks),
        (r"cond_enc\.emotion_adv_fc\.weight", lambda shape, g: _randn(shape, g) + 2 * PULL * sought[:, None]),
        (r"cond_enc\.spkr_enc\.weight", normal(math.sqrt(SPEAKER_DIM))),  # the speaker embedding has length 1
        (r"cond_enc\.perceiver\.pre_attention_query", around(0.0, 0.5)),
        (r"cond_enc\.perceiver\.attn\.norm\.weight", around(1.0, 0.1)),
        (r".*\.to_[qk]\.weight", normal(QK)),
        (r"tfmr\..*\.q_proj\.weight", lambda shape, g: normal(QK)(shape, g) + query),  # scores spread by about 2
        (r"tfmr\..*\.k_proj\.weight", lambda shape, g: normal(QK)(shape, g) + key),
        (r"tfmr\..*\.o_proj\.weight", normal(attended)),
        (r"tfmr\..*\.down_proj\.weight", normal(fed)),
        (r"tfmr\..*\.attn\.c_attn\.weight", _turned(_gpt2_qkv(query, key))),
        (r"tfmr\..*\.attn\.c_proj\.weight", _turned(normal(attended))),
        (r"tfmr\..*\.c_fc\.weight", _turned(normal())),
        (r"tfmr\..*\.mlp\.c_proj\.weight", _turned(normal(fed))),
        (r"tfmr\..*\.bias", around(0.0, 0.05)),
        (r"speech_head\.weight", lambda shape, g: _quiet(normal(5.0)(shape, g))),  # logits spread by 5
        (r"speech_head\.bias", around(0.0, 0.3)),
    ]


def _direction(dim: int, period: int) -> Tensor:
    """A vector of signs; those of different periods are orthogonal."""
    return 1.0 - 2.0 * (torch.arange(dim) % period >= period // 2)


def _seeking(cfg: T3Config, direction: Tensor) -> Tensor:
    """Returns (dim, dim) to add to queries or keys, which puts `direction` into the dimensions rope turns slowest."""
    half = cfg.head_dim // 2
    slow = (torch.arange(cfg.dim) % half >= half // 2).float()
    size = math.sqrt(2 * SEEK / math.sqrt(cfg.head_dim)) / (PULL * cfg.dim)
    return size * slow[:, None] * direction[None]


_S3GEN: Table = [
    (r".*\.num_batches_tracked", lambda shape, g: torch.zeros(shape, dtype=torch.int64)),
    (r"tokenizer\._mel_filters", lambda shape, g: _mel_filters(shape[0])),
    (r"tokenizer\.window", lambda shape, g: torch.hann_window(shape[0])),
    (r"tokenizer\.quantizer\..*weight", normal(0.7)),  # all three digits are used
    (r"speaker_encoder\..*(bn[0-9]|batchnorm|shortcut\.1)\.bias", around(-0.1, 0.05)),
    (r"speaker_encoder\..*\.linear_local\.weight", normal(2.5)),  # a sigmoid halves it
    (r"speaker_encoder\..*\.cam_layer\..*\.weight", normal()),
    (r"speaker_encoder\..*(conv[0-9]|linear[0-9]?|shortcut\.0)\.weight", normal(1.5)),
    (r"flow\.input_embedding\.weight", around(0.0, 1.0)),
    (r"flow\.spk_embed_affine_layer\.weight", around(0.0, 1.0)),  # the x-vector comes with length 1
    (r"flow\.encoder_proj\.bias", around(-4.0, 0.5)),
    (r"flow\.decoder\.estimator\.final_proj\.bias", around(-5.0, 0.5)),  # the level of log mels
    (r"flow\.decoder\.estimator\.final_proj\.weight", normal(3.0)),
    (r"mel2wav\..*\.alpha", around(1.0, 0.1)),
    (r"mel2wav\.f0_predictor\.condnet\..*\.original1", lambda shape, g: _centred(_randn(shape, g))),
    (r"mel2wav\..*\.original1", around(0.0, 1.0)),  # a direction; the next lines set its length
    (r"mel2wav\.(conv_pre|f0_predictor\.condnet\.0)\..*\.original0", around(0.25, 0.02)),  # log mels are large
    (r"mel2wav\.f0_predictor\..*\.original0", around(1.2, 0.1)),
    (r"mel2wav\.f0_predictor\.classifier\.weight", lambda shape, g: _centred(normal(25.0)(shape, g))),
    (r"mel2wav\.f0_predictor\.classifier\.bias", around(20.0, 0.0)),  # Hz; some frames fall below the voiced
    (r"mel2wav\.ups\.0\..*\.original0", around(2.4, 0.1)),
    (r"mel2wav\.ups\..*\.original0", around(1.8, 0.1)),
    (r"mel2wav\..*\.convs1\..*\.original0", around(0.7, 0.05)),
    (r"mel2wav\..*\.convs2\..*\.original0", around(0.35, 0.05)),
    (r"mel2wav\.source_downs\..*\.weight", normal(3.0)),
    (r"mel2wav\.m_source\.l_linear\.weight", normal(2.0)),
    (r"mel2wav\.conv_post\..*\.original0", around(0.5, 0.05)),
    (r"mel2wav\.conv_post\.bias", lambda shape, g: _randn(shape, g) * 0.3 - _first_half(shape[0], 1.5)),  # log, phase
]
_VOICE_ENCODER: Table = [
    (r"similarity_weight", around(10.0, 0.0)),
    (r"similarity_bias", around(-5.0, 0.0)),
    (r"lstm\.weight_ih_l0", normal(10.0)),
    (r"lstm\.weight_.*", normal(1.5)),
    (r"proj.weight", normal(2.0)),
]
_ANY: Table = [
    (r".*(norm|ln|norm_ff|norm_mha|norm[0-9]|bn[0-9]|batchnorm|block\.2|out\.1|shortcut\.1)\.weight", around(1.0, 0.1)),
    (r".*\.running_mean", around(0.0, 0.1)),
    (r".*\.running_var", lambda shape, g: torch.rand(shape, generator=g) + 0.5),
    (r".*bias", around(0.0, 0.05)),
    (r".*", normal()),
]


def _mel_filters(n_mels: int) -> Tensor:
    return torch.from_numpy(slaney_filters(S3_RATE, 400, n_mels, S3_RATE / 2))


def _first_half(n: int, value: float) -> Tensor:
    return value * (torch.arange(n) < n // 2)


def _centred(weight: Tensor) -> Tensor:
    """Returns the weight with a mean of zero per output, so that a constant input gives zero."""
    return weight - weight.mean(dim=tuple(range(1, weight.dim())), keepdim=True)


def _turned(init: Init) -> Init:
    """Returns an initialisation for GPT-2's weights, which are (in, out)."""
    return lambda shape, g: init(shape[::-1], g).t().contiguous()


def _gpt2_qkv(query: Tensor, key: Tensor) -> Init:
    def init(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
        square = (shape[1], shape[1])
        return torch.cat([normal(QK)(square, g) + query, normal(QK)(square, g) + key, normal()(square, g)])

    return init


def _quiet(head: Tensor) -> Tensor:
    """Makes control tokens other than the stop token very unlikely, as in a trained model."""
    for rows in (head[SPEECH_CODES:STOP_SPEECH], head[STOP_SPEECH + 1 :]):
        rows.mul_(0.02)
    return head
