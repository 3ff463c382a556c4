"""Packed checkpoints: tensors stored as the networks use them, fused, cast and quantised. Loading maps the files and
computes nothing; unused tensors take no memory.

packed.json describes the contents of a folder and the files it was made from. Every byte is verified against a checksum
on load, which runs at the speed of memory, because a wrong weight would only be heard, if at all.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import ModelConfig
from ..models.s3gen import S3Gen
from ..models.stored import StoredLinear
from ..models.t3 import T3
from ..models.voice_encoder import VoiceEncoder
from . import safefile
from .files import CONFIG, FILES, decoder_file
from .load import Loaded, Network, conds_of, fill, load_decoder, read_config

FORMAT = 1  # to be increased when module keys, keymap.py's rules or engine/digits.py change
MARKER = "packed.json"
NAMES = {"t3": "packed_t3.safetensors", "ve": "packed_ve.safetensors", "s3gen": "packed_s3gen.safetensors"}
PARTS = ("digits", "scale", "half")  # tensors that make up a StoredLinear's weight
BLOCK = 1 << 22  # bytes per block of a checksum


@dataclass(frozen=True)
class Form:
    """The form in which networks are packed, as follows from options and device."""

    device: str  # "cpu" | "cuda" | "mps"
    dtype: str
    s3gen_dtype: str
    quantize: str | None
    half: bool  # 16-bit weights of products in a float32 T3

    def __str__(self) -> str:
        fields = (f"{name}={getattr(self, name)!r}" for name in ("dtype", "s3gen_dtype", "quantize"))
        return f"{', '.join(fields)} on {self.device}"


@dataclass(frozen=True)
class Packed:
    """The contents of packed.json."""

    form: Form
    t3: str  # names of the files it was made from, without their endings
    decoder: str
    files: dict[str, dict[str, int]]  # name -> bytes and checksum
    source: dict[str, dict[str, Any] | None]  # what packing/make.py's stamps() saw
    made_by: str
    format: int = FORMAT


def is_packed(folder: str | Path) -> bool:
    return (Path(folder) / MARKER).is_file()


def read_packed(folder: str | Path) -> Packed:
    """Returns the description of a packed folder. Raises ValueError if that is broken or of another version, or a file
    is not what was written."""
    packed = read_marker(folder)
    for name, wanted in packed.files.items():
        path = Path(folder) / name
        if not path.is_file() or described(path) != wanted:
            there = "is not what was written" if path.is_file() else "is missing"
            raise ValueError(f"{path} {there}: pack the checkpoint again")
    return packed


def read_marker(folder: str | Path) -> Packed:
    """As read_packed(), without looking at the other files."""
    file = Path(folder) / MARKER
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise ValueError(f"{folder} was packed by chatterbox_opt {data['made_by']}, in a format of its own "
                             f"({data['format']}, here {FORMAT}): pack the checkpoint again")
        return Packed(**data | {"form": Form(**data["form"])})
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is broken ({error!r}): pack the checkpoint again") from error


def described(path: Path) -> dict[str, int]:
    """Returns size and checksum of a file. Reads instead of mapping it, as mapped pages count as the process's memory.
    """
    size = path.stat().st_size

    def checksum(at: int) -> bytes:
        with path.open("rb", buffering=0) as file:
            file.seek(at)
            return zlib.crc32(file.read(BLOCK)).to_bytes(4, "little")

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return {"bytes": size, "crc32": zlib.crc32(b"".join(pool.map(checksum, range(0, size, BLOCK))))}


def same_file(asked: str | Path, name: str) -> bool:
    """Whether `asked` is the file of this name, with .safetensors and .pt regarded as the same."""
    return Path(asked).with_suffix("") == Path(name)


def write_marker(folder: Path, packed: Packed) -> None:
    (folder / MARKER).write_text(json.dumps(dataclasses.asdict(packed), indent=1), encoding="utf-8")


# ---- loading -------------------------------------------------------------------------------------


def load_packed(
    folder: Path, packed: Packed, family: str, device: torch.device, decoder: str | Path | None = None
) -> Loaded:
    """Loads a packed folder; otherwise like load_folder()."""
    config = read_config(folder, family)
    t3 = ve = None
    if family != "vc":
        t3 = _load_t3(folder / NAMES["t3"], config, device)
        ve = _load(lambda: VoiceEncoder(config.voice_encoder), folder / NAMES["ve"], device)
    if decoder is None or same_file(decoder_file(decoder, FILES[family]["s3gen"]), packed.decoder):
        s3gen = _load(lambda: S3Gen(config), folder / NAMES["s3gen"], device)
    else:
        s3gen, config = load_decoder(folder, decoder, family, config, device)
    return Loaded(config, t3, s3gen, ve, conds_of(folder))


def _load(make: Callable[[], Network], path: Path, device: torch.device) -> Network:
    return fill(make, _tensors(path, safefile.read_header(path), device), (), str(path))


def _load_t3(path: Path, config: ModelConfig, device: torch.device) -> T3:
    entries = safefile.read_header(path)
    stored: dict[str, dict[str, safefile.Entry]] = defaultdict(dict)
    for key in [key for key in entries if key.rpartition(".")[2] in PARTS]:
        name, _, part = key.rpartition(".")
        stored[name][part] = entries.pop(key)

    def make() -> T3:
        t3 = T3(config.t3)
        for name, parts in stored.items():
            linear: Any = t3.get_submodule(name)
            t3.set_submodule(name, StoredLinear(linear, partial(_tensors, path, parts, device)))
        return t3

    return fill(make, _tensors(path, entries, device), (), str(path))


def _tensors(path: Path, entries: Mapping[str, safefile.Entry], device: torch.device) -> dict[str, Tensor]:
    tensors = safefile.map_tensors(path, entries, safefile.ALIGNED)
    return {key: tensor.to(device) for key, tensor in tensors.items()}


# ---- writing -------------------------------------------------------------------------------------


def write_t3(folder: Path, t3: T3, digits: Mapping[str, Callable[[Tensor], dict[str, Tensor]]]) -> None:
    """Writes T3. `digits`: linear's name -> function from its weight to the tensors stored instead."""
    tensors = t3.state_dict()
    for name, quantize in digits.items():
        parts = quantize(tensors.pop(f"{name}.weight"))
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
        linear: Any = t3.get_submodule(name)
        linear.weight = None  # frees the original
    _write(folder / NAMES["t3"], tensors)


def write_rest(folder: Path, parts: Loaded) -> None:
    """Writes the other networks, and the configuration of the whole."""
    if parts.ve is not None:
        _write(folder / NAMES["ve"], parts.ve.state_dict())
    _write(folder / NAMES["s3gen"], parts.s3gen.state_dict())
    (folder / CONFIG).write_text(json.dumps(parts.config.to_dict(), indent=1), encoding="utf-8")


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors of whole cache lines first, so that these are aligned and can be mapped."""
    keys = sorted(tensors, key=lambda key: tensors[key].nbytes % safefile.ALIGNED)
    layout = {key: (tensors[key].dtype, tuple(tensors[key].shape)) for key in keys}
    safefile.write(path, layout, (tensors[key] for key in keys))
