"""Upstream's flow and this package's with the same weights, tiny."""

from __future__ import annotations

import pytest
import torch
import upstream_tiny

from chatterbox_opt.config import FlowConfig, tiny
from chatterbox_opt.models.flow import Flow
from chatterbox_opt.weights.keymap import FLOW


def sharpen(module: torch.nn.Module, seed: int = 0, gain: float = 1.4) -> None:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            if p.ndim == 1:
                p.add_(0.1 * torch.randn(p.shape, generator=g))
            else:
                p.copy_(gain * torch.randn(p.shape, generator=g) / p[0].numel() ** 0.5)


def upstream_flow(config: FlowConfig):
    pytest.importorskip("chatterbox.models.s3gen.flow", reason="chatterbox-tts is not installed")
    flow = upstream_tiny.flow(config)
    sharpen(flow)
    return flow.eval()


def pair(family: str = "tts"):
    config = tiny(family).flow
    upstream = upstream_flow(config)
    return upstream, upstream_tiny.converted(upstream, Flow, config, FLOW), config


def random_flow(family: str = "tts", config: FlowConfig | None = None) -> Flow:
    with torch.random.fork_rng():
        torch.manual_seed(0)  # sharpen() leaves the biases where they began
        flow = Flow(config or tiny(family).flow)
    sharpen(flow, gain=1.0)
    return flow.eval().requires_grad_(False)


def voice(prompt: int = 25, seed: int = 0) -> dict:
    g = torch.Generator().manual_seed(seed)
    return {
        "prompt_token": torch.randint(0, 6561, (1, prompt), generator=g),
        "prompt_token_len": torch.tensor([prompt]),
        "prompt_feat": torch.randn(1, 2 * prompt, 80, generator=g),
        "prompt_feat_len": None,
        "embedding": torch.randn(1, 192, generator=g),
    }


def tokens(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 6561, (n,), generator=torch.Generator().manual_seed(100 + seed))
