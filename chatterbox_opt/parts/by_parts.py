"""A call whose model has replaced methods, made as chatterbox-tts makes it: through `t3.inference`, or
`t3.inference_turbo`, and `s3gen.inference`, which programs wrap to bound tokens, steps or time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import SAMPLES_PER_TOKEN
from ..engine.noise import RequestNoise
from ..engine.request import Cancelled, Utterance
from ..whole_speech import WholeSpeech
from .names import drop_invalid_tokens
from .s3gen import S3GenPart
from .t3 import LIMIT, T3Part
from .within import Within, within


def through_parts(
    t3: T3Part | None, s3gen: S3GenPart, utterances: Sequence[Utterance], seed: int | None, sink: WholeSpeech,
    cancel: Any = None, progress: Callable[[int, int], None] | None = None,
) -> None:
    """Speaks one utterance after another, and gives their sound to the sink. Methods that only look on change nothing
    of what generate() says at the same seed, or at the same state of torch's generators."""
    drawn, most = 0, sum(u.sampling.max_new_tokens for u in utterances)

    def report(tokens: int, at_most: int) -> None:
        if progress is not None:
            progress(drawn + tokens, most)

    for utterance, noise in zip(utterances, _noises(s3gen, seed, len(utterances)), strict=True):
        _end_if(cancel)
        with within(Within(noise, cancel, report)):
            if t3 is not None:
                tokens = torch.atleast_2d(_draw(t3, utterance))[0]
                utterance.tokens = drop_invalid_tokens(tokens).tolist()
                drawn += len(tokens)
            _end_if(cancel)
            wave = _sound(s3gen, utterance, one_row=t3 is None)
        _end_if(cancel)
        sink.add(utterance, wave, True)
    sink.finish()


def _noises(s3gen: S3GenPart, seed: int | None, count: int) -> Sequence[RequestNoise | None]:
    """None: each method continues torch's generators by itself."""
    alone = seed is None and count == 1
    return [None] if alone else s3gen.pipeline.noises(seed, count, alone=False)


def _end_if(cancel: Any) -> None:
    if cancel is not None and cancel.is_set():
        raise Cancelled("the call was cancelled")


def _draw(t3: T3Part, utterance: Utterance) -> Tensor:
    """With the arguments that chatterbox-tts gives, and a limit of tokens where the caller has one."""
    s, ids = utterance.sampling, torch.as_tensor(utterance.text_ids)
    how: dict[str, Any] = dict(
        t3_cond=utterance.cond, temperature=s.temperature, top_p=s.top_p, repetition_penalty=s.repetition_penalty
    )
    if t3.network.config.is_gpt:
        if s.max_new_tokens != LIMIT + 1:
            how["max_gen_len"] = s.max_new_tokens - 1
        return t3.inference_turbo(text_tokens=ids[None], top_k=s.top_k, **how)
    how |= dict(max_new_tokens=s.max_new_tokens, cfg_weight=s.cfg_weight, min_p=s.min_p)
    return t3.inference(text_tokens=torch.stack([ids] * utterance.rows), **how)


def _sound(s3gen: S3GenPart, utterance: Utterance, one_row: bool) -> Tensor:
    """Returns (N,). Voice conversion gives (1, n) tokens, speech (n,)."""
    heard = utterance.audible()
    if not heard:
        return torch.zeros(0)
    how: dict[str, Any] = dict(ref_dict=utterance.voice)
    steps = utterance.steps or s3gen.pipeline.options.flow_steps or (2 if s3gen.meanflow else None)
    if steps is not None:
        how["n_cfm_timesteps"] = steps
    tokens = torch.tensor(heard, device=s3gen.device)
    wave = s3gen.inference(speech_tokens=tokens[None] if one_row else tokens, **how)[0].reshape(-1)
    return wave[: SAMPLES_PER_TOKEN * max(1, len(heard) - 1)] if utterance.drop_last_token else wave
