"""Requests to the token engine, and the tokens that they draw."""

from __future__ import annotations

import pytest
import torch
from t3_pairs import text, voice

from chatterbox_opt.checks import missing_mlx
from chatterbox_opt.engine.engine import Engine
from chatterbox_opt.engine.noise import RequestNoise
from chatterbox_opt.engine.request import Call, Utterance
from chatterbox_opt.executor import token_runner
from chatterbox_opt.options import EngineOptions, SamplingOptions

CPU = torch.device("cpu")
EXACT = EngineOptions.exact()
N = 72
NO_MLX = missing_mlx()
MLX = pytest.param("mlx", marks=pytest.mark.skipif(NO_MLX is not None, reason=f"{NO_MLX}: pip install -e '.[mlx]'"))
everywhere = pytest.mark.parametrize("device", ["cpu", MLX], indirect=True, scope="module")  # of tests/engine


def request(config, n=20, seed=0, voice_seed=0, emotion=0.5, text_seed=0, **sampling):
    defaults = dict(min_p=0.0, top_p=0.95, top_k=1000, cfg_weight=0.0) if config.is_gpt else {}
    options = SamplingOptions(**{"max_new_tokens": N, **defaults, **sampling})
    cond = voice(config, voice_seed, emotion)
    return Utterance(text(config, n, text_seed), cond, options, noise=RequestNoise(CPU, seed))


def engine_of(t3, options=EXACT):
    """Returns an engine that draws tokens and renders nothing."""
    runner = token_runner(t3, options)
    return Engine(runner, None, None, options, runner.device)


def draw(engine, requests, **how):
    """Runs the requests as one call, and returns their utterances."""
    engine.run(Call(requests, **how))
    return requests


def tokens_of(t3, requests, options=EXACT):
    return [r.tokens for r in draw(engine_of(t3, options), requests)]


def mixed(config, count=6):
    settings = [
        dict(n=20), dict(n=5, cfg_weight=0.0), dict(n=40, top_p=0.7, cfg_weight=0.3), dict(n=11, temperature=0.0),
        dict(n=3, max_new_tokens=9), dict(n=17, repetition_penalty=1.7, emotion=0.9),
    ]
    if config.is_gpt:
        settings = [{k: v for k, v in s.items() if k != "cfg_weight"} for s in settings]
    return [request(config, seed=i, voice_seed=i, text_seed=i, **settings[i % 6]) for i in range(count)]
