"""Upstream's T3 and this package's with the same weights, tiny, scaled so that every part of the input matters."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
import upstream_tiny

from chatterbox_opt.config import T3Config, tiny
from chatterbox_opt.models.t3 import T3
from chatterbox_opt.weights.keymap import T3_GPT2, t3_llama


def sharpen(module: torch.nn.Module) -> None:
    """Scales weights: default initialisation gives almost flat logits, with which equal tokens prove little."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.ndim == 1:
                p.add_(0.1 * torch.randn(p.shape, generator=g))
            elif "emb" in name or "wpe" in name or "query" in name:
                p.copy_(torch.randn(p.shape, generator=g))
            elif "emotion" in name:  # one position among many must have an effect
                p.copy_(8 * torch.randn(p.shape, generator=g))
            elif "head" in name:
                p.copy_(5 * torch.randn(p.shape, generator=g) / p.shape[1] ** 0.5)
            else:
                fan = p.shape[0] if "c_" in name else p.shape[-1]
                p.copy_(1.5 * torch.randn(p.shape, generator=g) / fan**0.5)


def upstream_t3(config: T3Config):
    pytest.importorskip("chatterbox.models.t3.t3", reason="chatterbox-tts is not installed")
    model = upstream_tiny.t3(config)
    sharpen(model)
    return model.eval()


def pair(family: str):
    """Returns (upstream's, this package's, T3Config)."""
    config = tiny_t3(family)
    upstream = upstream_t3(config)
    rules = T3_GPT2 if config.is_gpt else t3_llama(config.head_dim)
    return upstream, upstream_tiny.converted(upstream, T3, config, rules), config


def tiny_t3(family: str) -> T3Config:
    config = tiny(family).t3
    return dataclasses.replace(config, text_vocab=500) if config.is_gpt else config  # a smaller table


def random_t3(family: str) -> T3:
    """Returns this package's alone, for tests without upstream."""
    config = tiny_t3(family)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        t3 = T3(config)
    sharpen(t3)
    return t3.eval().requires_grad_(False)


def voice(config: T3Config, seed: int = 0, emotion: float = 0.5) -> SimpleNamespace:
    g = torch.Generator().manual_seed(seed)
    return SimpleNamespace(
        speaker_emb=torch.nn.functional.normalize(torch.rand(1, 256, generator=g), dim=-1),
        cond_prompt_speech_tokens=torch.randint(0, 6561, (1, config.prompt_tokens), generator=g),
        emotion_adv=emotion * torch.ones(1, 1, 1),
    )


def text(config: T3Config, n: int, seed: int = 0) -> torch.Tensor:
    ids = torch.randint(1, 250, (n,), generator=torch.Generator().manual_seed(seed))
    return ids if config.is_gpt else torch.cat([torch.tensor([255]), ids, torch.tensor([0])])


def full_depth(family: str) -> T3:
    layers = 24 if family == "turbo" else 30
    config = dataclasses.replace(tiny(family).t3, layers=layers, dim=256, ff=512, text_vocab=500)
    torch.manual_seed(0)
    t3 = T3(config)
    sharpen(t3)
    with torch.no_grad():  # each layer adds little to its input, as in a trained one
        for name, weight in t3.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "c_proj.weight")):
                weight.mul_(config.layers**-0.5)
    return t3.eval().requires_grad_(False)


def some_history(config: T3Config, n: int = 20, steps: int = 30):
    """(voice, text ids, speech tokens)"""
    speech = torch.randint(0, 6561, (steps,), generator=torch.Generator().manual_seed(1))
    return voice(config), text(config, n), speech


@torch.inference_mode()
def torch_logits(t3: T3, cond, ids: torch.Tensor, speech: torch.Tensor) -> torch.Tensor:
    """(rows, steps + 1, V) at the last start token and behind each speech token; Llama's second row has no text."""
    rows = 1 if t3.config.is_gpt else 2
    emotion = None if t3.config.is_gpt else cond.emotion_adv
    prefix = t3.voice_prefix(cond.speaker_emb, cond.cond_prompt_speech_tokens, emotion).expand(rows, -1, -1)
    texts = t3.text_part(ids[None].expand(rows, -1), torch.tensor([False, True][:rows]))
    said = t3.embed_speech(speech, torch.arange(len(speech)))[None].expand(rows, -1, -1)
    x = torch.cat([prefix, texts, said], 1)
    return t3.logits(t3(x, torch.arange(x.shape[1])[None]))[:, -len(speech) - 1 :]


def kl(wanted: torch.Tensor, got: torch.Tensor) -> float:
    """Returns nats per position, of distributions over tokens."""
    p, q = wanted.double().log_softmax(-1), got.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())
