"""Upstream's HiFT and this package's with the same weights, scaled so that every part has an effect."""

from __future__ import annotations

import math

import pytest
import torch
import upstream_tiny

from chatterbox_opt.config import HiftConfig
from chatterbox_opt.models.hift import Hift
from chatterbox_opt.weights.keymap import HIFT

TINY = HiftConfig(channels=32, f0_channels=32)
HARMONICS = TINY.harmonics + 1  # and the fundamental


def upstream_hift(cfg: HiftConfig = TINY) -> torch.nn.Module:
    pytest.importorskip("chatterbox.models.s3gen.hifigan", reason="chatterbox-tts is not installed")
    torch.manual_seed(1)
    net = upstream_tiny.hift(cfg).eval()
    loud(net)
    return net


def loud(net: torch.nn.Module) -> None:
    """Sets gains near one in every layer, and fundamentals on both sides of the voicing threshold."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith("alpha"):
                p.copy_(0.3 + 2 * torch.rand(p.shape, generator=g))
            elif name.endswith("original0"):  # the length of each weight vector
                gain = 2.0 if name.startswith("ups") else 0.5 if "res" in name else 1.0
                p.copy_(gain * (0.7 + 0.6 * torch.rand(p.shape, generator=g)))
            elif name.endswith("bias"):
                p.copy_(0.1 * torch.randn(p.shape, generator=g))
        net.conv_post.parametrizations.weight.original0.mul_(0.15)
        net.conv_post.bias[:9].sub_(0.5)  # log-magnitudes: samples stay below the clip
        net.m_source.l_linear.weight.copy_(torch.randn(net.m_source.l_linear.weight.shape, generator=g))
        net.f0_predictor.classifier.weight.mul_(300)


def our_hift(net: torch.nn.Module, cfg: HiftConfig = TINY) -> Hift:
    return upstream_tiny.converted(net, Hift, cfg, HIFT)


def some_mel(frames: int, seed: int = 0) -> torch.Tensor:
    """Returns (80, T) as loud as a log-mel of speech, changing slowly."""
    g = torch.Generator().manual_seed(seed)
    steps = torch.randn(80, frames, generator=g).cumsum(1)
    return 2 * torch.sin(0.3 * steps) - 5


def noise_of(frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what upstream draws, in its order, from the global generator."""
    phases = torch.rand(1, HARMONICS, 1) * (2 * math.pi) - math.pi
    return phases, torch.randn(1, HARMONICS, 480 * frames)


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Returns the largest difference, relative to the largest value."""
    assert got.shape == wanted.shape
    return float((got - wanted).abs().max() / wanted.abs().max())
