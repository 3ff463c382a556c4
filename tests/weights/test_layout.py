"""The layouts against every key and shape of the published files, and these against the package's networks."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from chatterbox_opt.config import MODELS, tiny
from chatterbox_opt.weights import layout
from chatterbox_opt.weights.load import build_s3gen, build_t3, build_voice_encoder

PUBLISHED = json.loads(gzip.decompress((Path(__file__).parent / "published_keys.json.gz").read_bytes()))
T3 = {"tts": "t3_cfg", "mtl": "t3_mtl23ls_v2", "turbo": "t3_turbo_v1", "nano": "t3_nano_v1"}


def published(name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, shape in PUBLISHED[f"{name}.safetensors"].items()}


def on_meta(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    counts = {k: torch.int64 if k.endswith(layout.BATCH_COUNT) else torch.float32 for k in shapes}
    return {k: torch.empty(s, dtype=counts[k], device="meta") for k, s in shapes.items()}


def s3gen_file(family: str) -> str:
    return "s3gen_meanflow" if MODELS[family].flow.meanflow else "s3gen"


@pytest.mark.parametrize("family", MODELS)
def test_layout_is_the_published_one(family):
    config = MODELS[family]
    assert layout.t3(config.t3) == published(T3[family])
    assert layout.s3gen(config) == published(s3gen_file(family))
    assert layout.voice_encoder(config.voice_encoder) == published("ve")


@pytest.mark.parametrize("family", MODELS)
def test_published_keys_fill_our_networks_exactly(family):
    """Built on meta and loaded strictly: no key is left over or missing, and every fused shape fits."""
    config, meta = MODELS[family], torch.device("meta")
    t3 = build_t3(on_meta(published(T3[family])), config, meta, torch.bfloat16)
    assert {p.dtype for p in t3.parameters()} == {torch.bfloat16}
    build_s3gen(on_meta(published(s3gen_file(family))), config, meta)
    build_voice_encoder(on_meta(published("ve")), config, meta)


@pytest.mark.parametrize("family", MODELS)
def test_tiny_layouts_fill_tiny_networks(family):
    config, meta = tiny(family), torch.device("meta")
    build_t3(on_meta(layout.t3(config.t3)), config, meta, torch.float32)
    build_s3gen(on_meta(layout.s3gen(config)), config, meta)
    build_voice_encoder(on_meta(layout.voice_encoder(config.voice_encoder)), config, meta)
