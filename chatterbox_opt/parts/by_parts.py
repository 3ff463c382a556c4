"""A call whose model has replaced methods, made as chatterbox-tts makes it: through `t3.inference`, or
`t3.inference_turbo`, and `s3gen.inference`, which programs wrap to bound tokens, steps or time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..config import SAMPLES_PER_TOKEN, SPEECH_CODES
from ..engine.request import Cancelled, Utterance
from ..engine.seeds import piece_seed
from ..whole_speech import WholeSpeech
from .s3gen import S3GenPart
from .t3 import T3Part


def through_parts(
    t3: T3Part | None, s3gen: S3GenPart, utterances: Sequence[Utterance], seed: int | None, sink: WholeSpeech,
    cancel: Any = None,
) -> None:
    """Speaks one utterance after another, and gives their sound to the sink. Methods that only look on change nothing
    of what generate() says at the same seed."""
    for k, utterance in enumerate(utterances):
        if cancel is not None and cancel.is_set():
            raise Cancelled("the call was cancelled")
        with seeded(None if seed is None else piece_seed(seed, k)):
            if t3 is not None:
                tokens = _draw(t3, utterance).reshape(-1)
                utterance.tokens = tokens[tokens < SPEECH_CODES].tolist()
            sink.add(utterance, _sound(s3gen, utterance), True)
    sink.finish()


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Inside, torch's global generators begin at `seed`; they go on as before afterwards. None: nothing changes."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _draw(t3: T3Part, utterance: Utterance) -> Tensor:
    s, ids = utterance.sampling, torch.as_tensor(utterance.text_ids)
    how: dict[str, Any] = dict(
        t3_cond=utterance.cond, temperature=s.temperature, top_p=s.top_p, repetition_penalty=s.repetition_penalty
    )
    if t3.network.config.is_gpt:
        return t3.inference_turbo(text_tokens=ids[None], top_k=s.top_k, max_gen_len=s.max_new_tokens - 1, **how)
    how |= dict(max_new_tokens=s.max_new_tokens, cfg_weight=s.cfg_weight, min_p=s.min_p)
    return t3.inference(text_tokens=torch.stack([ids] * utterance.rows), **how)


def _sound(s3gen: S3GenPart, utterance: Utterance) -> Tensor:
    """Returns (N,)."""
    heard = utterance.audible()
    if not heard:
        return torch.zeros(0)
    how: dict[str, Any] = dict(ref_dict=utterance.voice)
    if utterance.steps is not None:
        how["n_cfm_timesteps"] = utterance.steps
    wave = s3gen.inference(speech_tokens=torch.tensor(heard, device=s3gen.device), **how)[0].reshape(-1)
    return wave[: SAMPLES_PER_TOKEN * max(1, len(heard) - 1)] if utterance.drop_last_token else wave
