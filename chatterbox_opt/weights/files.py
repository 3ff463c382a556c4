"""The checkpoint files of each family, and where they are published."""

from __future__ import annotations

from pathlib import Path

MINI = Path(__file__).parents[1] / "assets" / "mini"  # small enough to come with the package
REPOS = {
    "tts": "ResembleAI/chatterbox",
    "vc": "ResembleAI/chatterbox",
    "mtl": "ResembleAI/chatterbox",
    "turbo": "ResembleAI/chatterbox-turbo",
    "nano": "ResembleAI/chatterbox-nano",
}
CONFIG = "config.json"  # of folders of sizes that were never published, and of packed ones
MEANFLOW = "s3gen_meanflow.safetensors"  # the two-step decoder, published with Turbo
# If a file exists as safetensors and as .pt, the former is named; a folder with only the .pt works too.
FILES: dict[str, dict[str, str]] = {
    "tts": {
        "t3": "t3_cfg.safetensors", "ve": "ve.safetensors", "s3gen": "s3gen.safetensors", "tokenizer": "tokenizer.json",
    },
    "vc": {"s3gen": "s3gen.safetensors"},
    "mtl": {
        "t3": "t3_mtl23ls_v2.safetensors", "ve": "ve.safetensors", "s3gen": "s3gen.safetensors",
        "tokenizer": "grapheme_mtl_merged_expanded_v1.json",
    },
    "turbo": {"t3": "t3_turbo_v1.safetensors", "ve": "ve.safetensors", "s3gen": MEANFLOW},
    "nano": {"t3": "t3_nano_v1.safetensors", "ve": "ve.safetensors", "s3gen": MEANFLOW},
}
OPTIONAL = {"conds": "conds.pt", "cangjie": "Cangjie5_TC.json"}

DECODERS = ("standard", "meanflow")  # the family's own; the two-step one

T3_MODELS = {
    "v2": "t3_mtl23ls_v2.safetensors",
    "t3_mtl23ls_v2": "t3_mtl23ls_v2.safetensors",
    "v3": "t3_mtl23ls_v3.safetensors",
    "t3_mtl23ls_v3": "t3_mtl23ls_v3.safetensors",
}


def multilingual_t3(name: str | None) -> str | None:
    """Returns the file of a short name or file name; None stays None: any that the folder has, v2 first."""
    if name is None or name in T3_MODELS:
        return None if name is None else T3_MODELS[name]
    if not str(name).endswith((".safetensors", ".pt")):
        raise ValueError(f"t3_model={name!r}: choose one of {', '.join(T3_MODELS)}, or a .safetensors file name")
    return str(name)


def decoder_file(decoder: str | Path | None, own: str) -> str:
    """Returns the file of a name in DECODERS; any other name is a file's."""
    if decoder is None or decoder == "standard":
        return own
    if decoder == "meanflow":
        return MEANFLOW
    if Path(decoder).suffix not in (".safetensors", ".pt"):
        raise ValueError(f"decoder={str(decoder)!r}: choose one of {', '.join(DECODERS)}, or a .safetensors file")
    return str(decoder)


def has_meanflow(folder: str | Path) -> bool:
    return any((Path(folder) / MEANFLOW).with_suffix(suffix).is_file() for suffix in (".safetensors", ".pt"))
