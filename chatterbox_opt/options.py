"""The options a caller can choose: SamplingOptions and EngineOptions, frozen and validated. Standard library only."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

KERNELS = ("norm_linear", "attention", "linear_add", "sampling", "snake", "flow_attention", "add_norm")  # Triton
CAPTURES = ("prefill", "step", "flow", "vocoder")  # recorded as graphs: T3's prefill and step, a flow step, a window


@dataclass(frozen=True)
class SamplingOptions:
    """How the speech tokens of one utterance are drawn. Defaults are those of English Chatterbox."""

    repetition_penalty: float = 1.2  # 1 = none
    min_p: float = 0.05  # drop tokens less likely than min_p times the likeliest; 0 = off
    top_p: float = 1.0  # keep the likeliest tokens up to this mass; 1 = off, 0 = only the likeliest
    top_k: int = 0  # keep this many; 0 = off
    temperature: float = 0.8  # 0 = greedy
    cfg_weight: float = 0.5  # 0 = no guidance, one row instead of two
    max_new_tokens: int = 1000  # 25 per second; a limit, not a length

    def __post_init__(self) -> None:
        # Within these, no product or quotient of finite logits leaves the range of float32.
        _number("repetition_penalty", self.repetition_penalty, low=1e-3, high=1e3)
        _number("min_p", self.min_p, low=0.0, high=1.0)
        _number("top_p", self.top_p, low=0.0, high=1.0)
        if isinstance(self.temperature, bool) or self.temperature != 0:
            _number("temperature", self.temperature, low=1e-6, high=1e3, or_else="0 or ")
        _number("cfg_weight", self.cfg_weight, low=0.0, high=1e3)
        _integer("top_k", self.top_k, low=0, high=2**31 - 1)
        _integer("max_new_tokens", self.max_new_tokens, low=1, high=4000)


@dataclass(frozen=True)
class EngineOptions:
    """How the networks are run. One field per optimisation; `EngineOptions.exact()` turns all of them off.

    "auto" is replaced by what suits the device, in engine/resolve.py.
    """

    dtype: str = "auto"  # approximate. T3: "float32" | "bfloat16" | "float16", on x86 only the products' weights
    s3gen_dtype: str = "auto"  # approximate. GEMM, convolution and attention of flow and HiFT
    quantize: str | None = None  # approximate. T3 linears: None | "int8" | "int4"
    attention: str = "auto"  # exact. "sdpa" | "flash"
    compile: str | None = "auto"  # exact. None = eager | "cudagraph" | "reduce-overhead" | "trace" (CPU)
    captures: bool | tuple[str, ...] = True  # exact. what `compile` records; a tuple = only these of CAPTURES
    trial: str = "auto"  # exact. captures and kernels are tried: "off" | "here", beside what they stand in for |
    # "first" = here, and the first time on a device in a process of its own too | "always" in one; auto: first on CUDA
    slots: int = 16  # exact. utterances decoded in one batch
    cache_len: int = 4096 + 512  # positions a slot can hold at most; on a GPU up to 1,536 take memory at once
    poll_every: int = 4  # exact. steps between checks for ended utterances (CPU: 1); on a GPU it changes draws
    prefix_cache: bool = True  # exact. keep a voice's k/v and copy it into slots
    few_rows: bool = True  # exact. products of up to 16 rows laid out for reading W once (CPU, float32)
    short_convs: bool = True  # exact. convolutions of the vocoder with half the products (CPU, float32)
    kernels: bool | tuple[str, ...] = True  # exact. Triton kernels on CUDA; a tuple = only these of KERNELS
    mel_bucket: int = 48  # exact. flow lengths are padded to multiples of it, best itself one of 8 (frames, CUDA)
    cfm_schedule: str = "cosine"  # approximate unless "cosine". "cosine" | "sway": more steps early
    flow_steps: int | None = None  # approximate. Euler steps if a call gives none; None = the decoder's own number
    cfg_off_last: int = 0  # approximate. Euler steps at the end that run without guidance
    prompt_seconds: float | None = None  # approximate. shorten the voice prompt of the flow
    flow_int8: bool = False  # approximate. products of the flow's transformer blocks in int8 (CPU)
    wav_chunk: int = 2000  # exact. mel frames the vocoder takes at a time, 40 s
    runaway_guard: bool = True  # stop a row that repeats itself or never ends; off in exact mode
    # Of recordings: "exact" = soxr on the CPU, as upstream | "device" = a windowed sinc, which is approximate
    resampler: str = "auto"  # "exact" on a CPU, else "device"

    def __post_init__(self) -> None:
        _choice("dtype", self.dtype, ("auto", "float32", "bfloat16", "float16"))
        _choice("s3gen_dtype", self.s3gen_dtype, ("auto", "float32", "bfloat16", "float16"))
        _choice("quantize", self.quantize, (None, "int8", "int4"))
        _choice("attention", self.attention, ("auto", "sdpa", "flash"))
        _choice("compile", self.compile, ("auto", None, "cudagraph", "reduce-overhead", "trace"))
        _choice("trial", self.trial, ("auto", "off", "here", "first", "always"))
        _choice("cfm_schedule", self.cfm_schedule, ("cosine", "sway"))
        _choice("resampler", self.resampler, ("auto", "device", "exact"))
        _choice("flow_int8", self.flow_int8, (False, True))
        _names("kernels", self.kernels, KERNELS)
        _names("captures", self.captures, CAPTURES)
        _integer("slots", self.slots, low=1, high=1024)
        _integer("cache_len", self.cache_len, low=64)
        _integer("poll_every", self.poll_every, low=1)
        _integer("mel_bucket", self.mel_bucket, low=1)
        if self.flow_steps is not None:
            _integer("flow_steps", self.flow_steps, low=1, high=100)
        _integer("cfg_off_last", self.cfg_off_last, low=0)
        _integer("wav_chunk", self.wav_chunk, low=100)
        if self.prompt_seconds is not None:
            _number("prompt_seconds", self.prompt_seconds, low=1.0, high=10.0)

    @classmethod
    def exact(cls, **changes: Any) -> EngineOptions:
        """Returns the reference for every optimisation: float32, eager, without caches and kernels."""
        plain: dict[str, Any] = dict(
            dtype="float32", s3gen_dtype="float32", quantize=None, attention="sdpa", compile=None,
            poll_every=1, prefix_cache=False, few_rows=False, short_convs=False, kernels=False,
            trial="off", mel_bucket=1, wav_chunk=1_000_000, runaway_guard=False, resampler="exact",
        )
        return cls(**{**plain, **changes})

    def wants(self, kernel: str) -> bool:
        return self.kernels if isinstance(self.kernels, bool) else kernel in self.kernels

    def records(self, part: str) -> bool:
        return self.captures if isinstance(self.captures, bool) else part in self.captures

    def replace(self, **changes: Any) -> EngineOptions:
        return dataclasses.replace(self, **changes)


def _number(name: str, value: Any, low: float, high: float, or_else: str = "") -> None:
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not (number and low <= value <= high):  # NaN is outside
        raise ValueError(f"{name}={value!r}: {or_else}a number from {low:g} to {high:g} is needed")


def _integer(name: str, value: Any, low: int, high: int | None = None) -> None:
    ok = isinstance(value, Integral) and not isinstance(value, bool)
    ok = ok and value >= low and (high is None or value <= high)
    if not ok:
        span = f"from {low} to {high}" if high is not None else f"of at least {low}"
        raise ValueError(f"{name}={value!r}: a whole number {span} is needed")


def _names(name: str, value: object, known: tuple[str, ...]) -> None:
    if not isinstance(value, bool) and not (isinstance(value, tuple) and set(value) <= set(known)):
        raise ValueError(f"{name}={value!r}: True, False or a tuple of {', '.join(known)} is needed")


def _choice(name: str, value: object, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(map(repr, allowed))}")
