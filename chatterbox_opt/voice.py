"""A voice: the conditioning of T3 and S3Gen, as it is kept in conds.pt."""

from __future__ import annotations

import dataclasses
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from .audio.io import label
from .computing import computing
from .config import (
    FRAMES_PER_TOKEN,
    MEL_BINS,
    SPEAKER_DIM,
    SPEECH_CODES,
    XVECTOR_DIM,
    ModelConfig,
)

logger = logging.getLogger(__name__)

AGAIN = "prepare the voice from its recording with this model"


@dataclass(eq=False)
class T3Cond:
    """What conditions T3. Copies of a voice share its tensors, and what is written into one is heard in all of them."""

    speaker_emb: Tensor  # (1, 256)
    clap_emb: Tensor | None = None  # never used by a published model
    cond_prompt_speech_tokens: Tensor | None = None  # (1, n) long
    cond_prompt_speech_emb: Tensor | None = None  # upstream writes it after a generate; T3 computes its own
    emotion_adv: Tensor | float | None = 0.5  # (1, 1, 1): exaggeration

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> T3Cond:
        """Returns a copy on `device`, its floating-point tensors in `dtype`."""

        def move(value: Any) -> Any:
            if not torch.is_tensor(value):
                return value
            return value.to(device=device, dtype=dtype if value.is_floating_point() else None)

        return T3Cond(**{name: move(value) for name, value in fields(self).items()})

    def save(self, fpath: Any) -> None:
        with computing(torch.device("cpu")):
            torch.save({name: detached_copy(value, "cpu") for name, value in fields(self).items()}, fpath)

    @classmethod
    def load(cls, fpath: Any, map_location: Any = "cpu") -> T3Cond:
        return _t3_half(_loaded(fpath, map_location), fpath)


@dataclass(eq=False)
class Conditionals:
    """A voice. `gen` holds prompt_token (1, n), its length, prompt_feat (1, 2n or 2n + 1, 80), embedding (1, 192)."""

    t3: T3Cond
    gen: dict[str, Any]

    def to(self, device: Any) -> Conditionals:
        """Returns a copy on that device."""
        gen = {k: v.to(device) if torch.is_tensor(v) else v for k, v in self.gen.items()}
        return Conditionals(self.t3.to(device), gen)

    def save(self, fpath: Any) -> None:
        """Writes a conds.pt, which upstream can load too, to a path or an open file."""
        with computing(torch.device("cpu")):
            torch.save({"t3": {k: detached_copy(v, "cpu") for k, v in fields(self.t3).items()},
                        "gen": {k: detached_copy(v, "cpu") for k, v in self.gen.items()}}, fpath)

    @classmethod
    def load(cls, fpath: Any, map_location: Any = "cpu") -> Conditionals:
        """Reads a conds.pt, of upstream too, by its path or open."""
        data = _loaded(fpath, map_location)
        return cls(_t3_half(_named(data, "t3", fpath), fpath), _sound_half(_named(data, "gen", fpath), fpath))

    def check(self, config: ModelConfig, source: Any = "this voice") -> Conditionals:
        """Returns the voice. Raises ValueError if it does not fit the model."""
        tokens: Any = self.t3.cond_prompt_speech_tokens
        if tokens is None:
            raise ValueError(f"{source}: it has no prompt for T3; {AGAIN}")
        allowed, got, continued = config.t3.prompt_tokens, tokens.shape[-1], self.gen["prompt_token"].shape[-1]
        if not 1 <= got <= allowed:
            raise ValueError(
                f"{source}: its prompt has {got} speech tokens; {config.family} takes 1 to {allowed}; {AGAIN}"
            )
        # A recording gives T3 its first 6 or 15 s and S3Gen its first 10 s: only Turbo's T3 hears the longer part.
        if config.t3.is_gpt and got + 1 < continued:
            raise ValueError(
                f"{source}: its prompt has {got} speech tokens beside {continued} for the decoder; "
                f"{config.family} takes up to {allowed}, no fewer than that; it is another family's voice; {AGAIN}"
            )
        _shaped(source, "speaker_emb", self.t3.speaker_emb, (1, SPEAKER_DIM))
        _shaped(source, "cond_prompt_speech_tokens", tokens, (1, got))
        _check_ids(source, tokens)
        return self.check_sound(source)

    def check_sound(self, source: Any = "this voice") -> Conditionals:
        """As check(), of S3Gen's half alone, which has the same shapes in every family."""
        tokens, mel = self.gen["prompt_token"], self.gen["prompt_feat"]
        _shaped(source, "prompt_token", tokens, (1, None))
        _shaped(source, "prompt_feat", mel, (1, None, MEL_BINS))
        _shaped(source, "embedding", self.gen["embedding"], (1, XVECTOR_DIM))
        if mel.shape[1] // FRAMES_PER_TOKEN != tokens.shape[1]:  # what is made would begin too early or too late
            raise ValueError(f"{source}: {mel.shape[1]} frames of its mel belong to {tokens.shape[1]} tokens, which "
                             f"have {FRAMES_PER_TOKEN} each; {AGAIN}")
        _check_ids(source, tokens)
        return self


AnyVoice = Conditionals | str | Path  # what calls take: a voice, or the path of a recording or of a saved voice


# By id and by how often each was written to: to look at a GPU's tensor takes time.
_in_range: WeakValueDictionary[tuple[int, int], Tensor] = WeakValueDictionary()


def _check_ids(source: Any, ids: Tensor) -> None:
    """Raises ValueError for ids that are no speech tokens: a GPU would not survive it."""
    key = id(ids), 0 if ids.is_inference() else ids._version
    if _in_range.get(key) is ids:
        return
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < SPEECH_CODES:
        raise ValueError(f"{source}: its speech tokens lie outside 0 to {SPEECH_CODES - 1}; {AGAIN}")
    _in_range[key] = ids


def _shaped(source: Any, name: str, value: Tensor, shape: tuple[int | None, ...]) -> None:
    if len(value.shape) != len(shape) or any(b not in (None, a) for a, b in zip(value.shape, shape)):
        raise ValueError(f"{source}: {name} has shape {tuple(value.shape)}; {shape} is needed; {AGAIN}")


def load_sound_half(fpath: Any) -> dict[str, Any]:
    """Reads S3Gen's half of a voice file; it may be the only one there."""
    return _sound_half(_named(_loaded(fpath), "gen", fpath), fpath)


def _loaded(fpath: Any, map_location: Any = "cpu") -> Any:
    if isinstance(fpath, (str, os.PathLike)) and not Path(fpath).is_file():
        raise FileNotFoundError(f"{fpath}: there is no such voice file")
    try:
        return torch.load(fpath, map_location=map_location, weights_only=True)
    except Exception as error:  # whatever pickle and zip make of a foreign file
        why = str(error).strip().split("\n")[0]
        raise ValueError(f"{label(fpath)}: not a voice file ({why}); prepare the voice from its recording") from error


def _named(data: Any, name: str, fpath: Any) -> Any:
    part = data.get(name) if isinstance(data, dict) else None
    if not isinstance(part, dict):
        raise ValueError(f"{label(fpath)}: this voice file lacks {name}; prepare the voice from its recording")
    return part


def _t3_half(part: Any, fpath: Any) -> T3Cond:
    """Those that upstream writes after a generate have ids as floats, and embeddings."""
    t3 = _checked(part, ("speaker_emb", "cond_prompt_speech_tokens"), fpath)
    kept = {f.name: t3[f.name] for f in dataclasses.fields(T3Cond) if f.name in t3}
    kept["cond_prompt_speech_emb"] = None  # stale as soon as T3's weights or type differ
    kept["cond_prompt_speech_tokens"] = torch.atleast_2d(kept["cond_prompt_speech_tokens"].long())
    _check_ids(fpath, kept["cond_prompt_speech_tokens"])
    emotion = kept.get("emotion_adv")
    emotion = torch.as_tensor(0.5 if emotion is None else emotion)
    if emotion.numel() != 1:
        raise ValueError(f"{label(fpath)}: emotion_adv has {emotion.numel()} values, one is needed; {AGAIN}")
    kept["emotion_adv"] = as_emotion(emotion, kept["speaker_emb"].device)
    return T3Cond(**kept)


def _sound_half(part: Any, fpath: Any) -> dict[str, Any]:
    gen = _checked(part, ("prompt_token", "prompt_token_len", "prompt_feat", "embedding"), fpath)
    gen["prompt_token"] = torch.atleast_2d(gen["prompt_token"].long())
    _check_ids(fpath, gen["prompt_token"])
    gen["prompt_token_len"] = torch.as_tensor(gen["prompt_token_len"]).long().reshape(-1)
    gen["prompt_feat_len"] = None
    return gen


def _checked(part: Any, needed: tuple[str, ...], fpath: Any) -> dict[str, Any]:
    name = label(fpath)
    missing = [key for key in needed if part.get(key) is None] if isinstance(part, dict) else list(needed)
    if missing:
        raise ValueError(f"{name}: this voice file lacks {', '.join(missing)}; prepare the voice from its recording")
    for key in needed:
        if not torch.is_tensor(part[key]) and key != "prompt_token_len":
            raise ValueError(f"{name}: {key} is {type(part[key]).__name__}, a tensor is needed; {AGAIN}")
    return {k: v.detach() if torch.is_tensor(v) else v for k, v in part.items()}


def fields(cond: T3Cond) -> dict[str, Any]:
    return {f.name: getattr(cond, f.name) for f in dataclasses.fields(cond)}


def as_emotion(value: Any, device: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float32, device=device).reshape(1, 1, 1)


def detached_copy(value: Any, device: Any = None) -> Any:
    """Returns a plain tensor with its own storage: no inference tensor, no graph, no view. Other values are returned
    unchanged."""
    if not torch.is_tensor(value):
        return value
    with torch.inference_mode(False), torch.no_grad():
        return value.detach().to(device).clone(memory_format=torch.contiguous_format)


def with_exaggeration(voice: Conditionals, exaggeration: float | None) -> Conditionals:
    """Returns a voice with that exaggeration, or with its own if that is None. All other tensors are shared."""
    own = 0.5 if voice.t3.emotion_adv is None else voice.t3.emotion_adv
    with torch.inference_mode(False), torch.no_grad():
        emotion = as_emotion(float(own if exaggeration is None else exaggeration), voice.t3.speaker_emb.device)
    return Conditionals(dataclasses.replace(voice.t3, emotion_adv=emotion), dict(voice.gen))
