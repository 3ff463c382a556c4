"""Loads networks from a checkpoint folder: built on "meta", filled tensor by tensor, and every key checked."""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..config import MODELS, ModelConfig, T3Config
from ..models.s3gen import S3Gen
from ..models.t3 import T3
from ..models.voice_encoder import VoiceEncoder
from . import keymap, layout, safefile
from .files import CONFIG, FILES, OPTIONAL
from .find import find, find_decoder, find_t3, s3gen_beside

logger = logging.getLogger(__name__)

LAYER = re.compile(r"tfmr\.(?:layers|h)\.\d+\.")
Network = TypeVar("Network", bound=nn.Module)
COPIES = "patched_model."  # prefix of second copies of tensors in a T3 that was saved after use


@dataclass(frozen=True)
class Loaded:
    config: ModelConfig
    t3: Any  # None for voice conversion
    s3gen: S3Gen
    ve: VoiceEncoder | None
    conds_file: Path | None


def load_folder(
    folder: str | Path,
    family: str,
    device: torch.device,
    dtype: torch.dtype,
    t3_file: str | Path | None = None,
    decoder: str | Path | None = None,
    make_t3: Callable[[Source, ModelConfig], Any] | None = None,
    config: ModelConfig | None = None,
) -> Loaded:
    """Returns the networks: T3 in `dtype`, or made by `make_t3` from its file; the others in float32, of which the
    engine casts some. `config` replaces the folder's."""
    folder = existing(folder)
    config = config or read_config(folder, family)
    files = weight_files(folder, family, t3_file, decoder)
    t3 = ve = None
    if family != "vc":
        source = Source(files["t3"])
        config = config if t3_file is None else _with_more_characters(config, source)
        t3 = make_t3(source, config) if make_t3 else build_t3(source, config, device, dtype)
        ve = build_voice_encoder(Source(files["ve"]), config, device)
    s3gen, config = load_decoder(folder, decoder, family, config, device)
    return Loaded(config, t3, s3gen, ve, conds_of(folder))


def existing(folder: str | Path) -> Path:
    if not Path(folder).is_dir():
        published = "from_pretrained(), or a command without --dir, downloads one"
        raise FileNotFoundError(f"{folder}: there is no such checkpoint folder; {published}")
    return Path(folder)


def conds_of(folder: Path) -> Path | None:
    conds = folder / OPTIONAL["conds"]
    return conds if conds.is_file() else None


def weight_files(
    folder: Path, family: str, t3_file: str | Path | None = None, decoder: str | Path | None = None
) -> dict[str, Path]:
    """Returns the file of each network."""
    names, out = FILES[family], {}
    if family != "vc":
        out = {"t3": find_t3(folder, names["t3"], t3_file), "ve": find(folder, names["ve"])}
    out["s3gen"] = find_decoder(folder, decoder, family)
    base = s3gen_beside(out["s3gen"])
    return out | ({} if base is None else {"beside": base})


def load_decoder(
    folder: Path, decoder: str | Path | None, family: str, config: ModelConfig, device: torch.device
) -> tuple[S3Gen, ModelConfig]:
    """Returns the S3Gen of a file, and the model's config with it: T3 of any family may use any decoder, as all have
    the same tokens. A file with only an estimator replaces that part of the S3Gen beside it."""
    source = Source(file := find_decoder(folder, decoder, family))
    if (base := s3gen_beside(file)) is not None:
        source.lay_over(Source(base))
    if decoder is not None:
        config = config.with_meanflow(layout.MEANFLOW_KEY in source.shapes)
    return build_s3gen(source, config, device), config


def read_config(folder: Path, family: str) -> ModelConfig:
    """Returns the config of a folder; published folders, which have no config.json of ours, have known sizes."""
    file = folder / CONFIG
    if file.is_file():
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is not JSON: {error}") from error
        if isinstance(data, dict) and "family" in data:  # and not a tokenizer's or another library's
            return of_family(ModelConfig.from_dict(data), family, folder)
    return MODELS["tts" if family == "vc" else family]


def of_family(config: ModelConfig, family: str, source: object) -> ModelConfig:
    wanted = "tts" if family == "vc" else family
    if config.family != wanted:
        raise ValueError(f"{source} holds a {config.family} model; {wanted} was asked for")
    return config


def _with_more_characters(config: ModelConfig, source: Source) -> ModelConfig:
    """A fine-tuned T3 may have a larger text vocabulary, for which the folder's tokenizer is replaced."""
    rows, *_ = source.shapes.get("text_emb.weight", (0,))
    return config.with_text_vocab(max(rows, config.t3.text_vocab))


def build_t3(source: Source | dict[str, Tensor], config: ModelConfig, device: torch.device, dtype: torch.dtype) -> T3:
    source = _as_source(source)
    rules, keys = _checked_t3(source, config)
    return fill(lambda: T3(config.t3), source.read(dtype, device, keys), rules, source.name)


def read_t3(source: Source | dict[str, Tensor], config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Yields every tensor of a T3 under our names, in float32, read a layer at a time."""
    source = _as_source(source)
    rules, keys = _checked_t3(source, config)
    layers: dict[str | None, list[str]] = defaultdict(list)
    for key in keys:
        layer = LAYER.match(key)
        layers[layer and layer[0]].append(key)
    for own in layers.values():
        state = keymap.remap(source.read(torch.float32, torch.device("cpu"), own), rules, consume=True)
        while state:
            yield state.popitem()


def _checked_t3(source: Source, config: ModelConfig) -> tuple[list[keymap.Rule], list[str]]:
    """Returns the rules for its keys, and the keys to be read. Raises ValueError if the file does not fit."""
    cfg = config.t3
    rules = _t3_rules(cfg)
    wanted, unread = layout.t3(cfg), _unread(rules)
    source.check(wanted, optional=unread.__contains__)
    foreign = [k for k in source.unknown if k not in unread and not k.startswith(COPIES)]
    if foreign:  # such as an unmerged adapter, whose voice would be lost
        raise ValueError(f"{source.name} has {len(foreign)} tensors T3 has no place for, the first {foreign[0]}")
    return rules, [k for k in wanted if k not in unread]


def _t3_rules(config: T3Config) -> list[keymap.Rule]:
    return keymap.T3_GPT2 if config.is_gpt else keymap.t3_llama(config.head_dim)


def unread_of_t3(config: T3Config) -> frozenset[str]:
    """Returns the keys of a T3's file that speaking does not need."""
    return _unread(_t3_rules(config))


def build_s3gen(source: Source | dict[str, Tensor], config: ModelConfig, device: torch.device) -> S3Gen:
    source = _as_source(source)
    wanted = layout.s3gen(config)
    source.check(wanted, optional=layout.spare_in_s3gen)
    state = source.read(torch.float32, device, [k for k in wanted if k not in layout.COMPUTED])
    return fill(lambda: S3Gen(config), state, keymap.S3GEN, source.name)


def build_voice_encoder(
    source: Source | dict[str, Tensor], config: ModelConfig, device: torch.device
) -> VoiceEncoder:
    source = _as_source(source)
    unread = unread_of_voice_encoder()
    wanted = layout.voice_encoder(config.voice_encoder)
    source.check(wanted, optional=unread.__contains__)
    state = source.read(torch.float32, device, [k for k in wanted if k not in unread])
    return fill(lambda: VoiceEncoder(config.voice_encoder), state, keymap.VOICE_ENCODER, source.name)


def unread_of_voice_encoder() -> frozenset[str]:
    return _unread(keymap.VOICE_ENCODER)


class Undrawn(TorchFunctionMode):
    """Builds modules without initializing them. On "meta" that would take a tenth of a second, and an embedding's
    initialization imports torch's compiler: a second and 80 MB."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def fill(make: Callable[[], Network], state: dict[str, Tensor], rules: Iterable, name: str) -> Network:
    with torch.device("meta"), Undrawn():
        module = make().requires_grad_(False)  # before loading: the weights may be tensors of inference mode
    try:
        module.load_state_dict(keymap.remap(state, rules, consume=True), strict=True, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{name}: {error}") from error
    return module.eval()


def _unread(rules: Iterable[keymap.Rule]) -> frozenset[str]:
    """Returns the keys that the networks do not need: they may be missing, and are not read."""
    return frozenset(s for r in rules if r.target is None for s in r.sources)


class Source:
    """A file of tensors: safetensors, or a .pt of a state dict, bare or as {"model": [state]}."""

    def __init__(self, path: Path) -> None:
        self.name, self.path = str(path), path
        self.state: dict[str, Tensor] | None = None
        self.base: Source | None = None
        if path.suffix == ".safetensors":
            self.entries = keymap.current_names(safefile.read_header(path))
            self.shapes = {key: entry.shape for key, entry in self.entries.items()}
        else:
            self._take(_unpickle(path))

    def _take(self, state: dict[str, Tensor]) -> None:
        self.state = keymap.current_names(state)
        self.shapes = {key: tuple(tensor.shape) for key, tensor in self.state.items()}

    def lay_over(self, base: Source) -> None:
        """Takes from `base` the tensors that this one lacks."""
        self.base, self.shapes = base, base.shapes | self.shapes

    def check(self, wanted: layout.Layout, optional: Callable[[str], bool]) -> None:
        """Raises ValueError, which names every missing, unexpected or misshapen key, before anything is read."""
        missing = [k for k in wanted if k not in self.shapes and not optional(k)]
        if missing:
            raise ValueError(f"{self.name} lacks {len(missing)} of {len(wanted)} tensors, the first {missing[0]}; "
                             "is it whole, and of this model family?")
        for key, shape in wanted.items():
            if key in self.shapes and not optional(key) and self.shapes[key] != tuple(shape):
                raise ValueError(f"{self.name}: {key} has shape {self.shapes[key]}, {tuple(shape)} is needed; "
                                 "is it of this model family?")
        self.unknown = [k for k in self.shapes if k not in wanted]
        if self.unknown:
            first = self.unknown[0]
            logger.debug("%s: %d unknown tensors left unread, the first %s", self.name, len(self.unknown), first)

    def read(self, dtype: torch.dtype, device: torch.device, keys: Iterable[str]) -> dict[str, Tensor]:
        """Returns the tensors, each cast and moved as it is read, so that at most one exists twice."""
        keys = [k for k in keys if k in self.shapes]
        lent: dict[str, Tensor] = {}
        if self.base is not None:
            own = self.entries if self.state is None else self.state
            lent = self.base.read(dtype, device, [k for k in keys if k not in own])
            keys = [k for k in keys if k in own]
        if self.state is None:
            keys.sort(key=lambda key: self.entries[key].start)
            pairs: Iterable = ((k, self._read(k, dtype, device)) for k in keys)
        else:  # a pickle is in memory as a whole; each tensor is freed once taken
            pairs = ((k, self.state.pop(k)) for k in keys)
        return lent | {k: t.detach().to(device, dtype if t.is_floating_point() else None) for k, t in pairs}

    def _read(self, key: str, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Returns a tensor in its own memory, or on the file's pages if it is copied anyway."""
        entry = self.entries[key]
        if device.type != "cpu" or (entry.dtype.is_floating_point and entry.dtype != dtype):
            return safefile.map_tensors(self.path, {key: entry})[key]
        return dict(safefile.read_tensors(self.path, {key: entry}))[key]


def _as_source(source: Source | dict[str, Tensor]) -> Source:
    if isinstance(source, Source):
        return source
    out = Source.__new__(Source)
    out.name, out.base = "the model given", None
    out._take(dict(source))
    return out


def _unpickle(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip and pickle may raise anything for a foreign or broken file
        raise ValueError(f"{path} cannot be read as a checkpoint ({error}); download it again") from error
    if isinstance(state, dict) and "model" in state:
        state = state["model"]
    if isinstance(state, (list, tuple)):
        state = state[0]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} holds no state dict")
    return state
