"""The keyword arguments that several public methods take: what an editor completes and a type checker checks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

from .config import ModelConfig
from .options import EngineOptions
from .scores import Take


class EngineKeywords(TypedDict, total=False):
    """Of pack(), and of everything below that makes a model: the switches that EngineOptions follow from."""

    enable_compilation: bool  # True by default; False runs eagerly
    use_mixed_precision: bool  # True by default; False = float32
    attention: str | None  # "sdpa" | "flash"; None = the fastest that is installed
    quantize: str | None  # "int8" | "int4"; None leaves the weights as they are
    engine: EngineOptions | None  # everything else
    preset: str | None  # a named set of options, see presets.py


class SwitchKeywords(EngineKeywords, total=False):
    """Of every constructor and loader, and of optimize()."""

    enable_watermark: bool  # True by default


class ModelKeywords(SwitchKeywords, total=False):
    """Of every constructor and loader."""

    config: ModelConfig | None  # for sizes that were never published


class LoadKeywords(ModelKeywords, total=False):
    """Of from_pretrained(), from_local() and from_random()."""

    decoder: str | Path | None  # "meanflow" = Turbo's, of two steps; or a file
    cache_packed: bool | str | Path  # store the weights in the engine's form, in the user's cache folder or in this one


class ConverterKeywords(ModelKeywords, total=False):
    """Of the loaders of voice conversion."""

    decoder: str | Path | None  # "meanflow" = Turbo's, of two steps; or a file


class CallKeywords(TypedDict, total=False):
    """The fields of calls.GenerateOptions, which says what they mean."""

    n_cfm_timesteps: int | None
    max_chars: int | None
    verbose: bool
    cancel: Any
    progress: Callable[[int, int], None] | None
    takes: int
    score: Callable[[Take], float] | None
    retries: int


class SamplingKeywords(TypedDict, total=False):
    """The fields of options.SamplingOptions, which says what they mean; None = the model's default."""

    repetition_penalty: float | None
    min_p: float | None
    top_p: float | None
    top_k: int | None
    temperature: float | None
    cfg_weight: float | None
    max_new_tokens: int | None


class TextKeywords(SamplingKeywords, total=False):
    """How one text is read and spoken."""

    markup: Any  # True: the text has marks; see text/markup.py
    breath: bool  # pauses between pieces by punctuation
    loudness: float | None  # LUFS of each piece, such as -20; None leaves it as it is
    spoken: bool | str  # numbers, dates and units in words
    pronounce: Any  # respellings: a mapping, or a file of them


class OneTextKeywords(TextKeywords, total=False):
    language_id: str | None
    exaggeration: float | None  # None: the voice's own
    seed: int | None  # None draws from torch's global generators
    n_cfm_timesteps: int | None
    max_chars: int | None
    cancel: Any
    progress: Callable[[int, int], None] | None


class StreamKeywords(OneTextKeywords, total=False):
    """Of generate_stream()."""

    first_chunk: float  # seconds
    verbose: bool


class SubmitKeywords(OneTextKeywords, total=False):
    """Of submit()."""

    first_chunk: float | None  # seconds; None: the speech comes as a whole


class TextsKeywords(TypedDict, total=False):
    """As TextKeywords, for several texts: one value for all, or a list with one for each."""

    repetition_penalty: Any
    min_p: Any
    top_p: Any
    top_k: Any
    temperature: Any
    cfg_weight: Any
    max_new_tokens: Any
    markup: Any
    breath: Any
    loudness: Any
    spoken: Any
    pronounce: Any


class BatchKeywords(CallKeywords, TextsKeywords, total=False):
    """Of generate_batch(): those of the call, and those of its texts."""

    exaggeration: Any


class ReadingKeywords(SamplingKeywords, total=False):
    """Of read_aloud(), for roles without their own."""

    exaggeration: float | None  # None: the voice's own
    language_ids: str | None
    spoken: bool | str  # numbers, dates and units in words
    pronounce: Any  # respellings: a mapping, or a file of them
    n_cfm_timesteps: int | None
    max_chars: int | None
    takes: int  # drawn of each piece
    retries: int  # how often a piece that went wrong is drawn again
    cancel: Any


def of_calls() -> list[str]:
    """Returns the names of what methods that speak take, those of one text and of several."""
    kinds = (SubmitKeywords, StreamKeywords, BatchKeywords)
    named = [name for kind in kinds for name in kind.__annotations__]
    return list(dict.fromkeys(["voice", "voices", "audio_prompt_path", "seeds", "language_ids", *named]))
