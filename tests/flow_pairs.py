"""Upstream's flow and this package's with the same weights, tiny."""

from __future__ import annotations

import pytest
import torch

from chatterbox_opt.config import FlowConfig, tiny
from chatterbox_opt.models.flow import Flow
from chatterbox_opt.weights.keymap import FLOW, remap


def sharpen(module: torch.nn.Module, seed: int = 0, gain: float = 1.4) -> None:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            if p.ndim == 1:
                p.add_(0.1 * torch.randn(p.shape, generator=g))
            else:
                p.copy_(gain * torch.randn(p.shape, generator=g) / p[0].numel() ** 0.5)


def upstream_flow(config: FlowConfig):
    """Returns the real parts at a given size; the constructors of two of them have 512 channels fixed."""
    pytest.importorskip("chatterbox.models.s3gen.flow", reason="chatterbox-tts is not installed")
    from chatterbox.models.s3gen.decoder import ConditionalDecoder
    from chatterbox.models.s3gen.flow import CausalMaskedDiffWithXvec
    from chatterbox.models.s3gen.flow_matching import CausalConditionalCFM
    from chatterbox.models.s3gen.transformer.upsample_encoder import (
        PreLookaheadLayer,
        Upsample1D,
        UpsampleConformerEncoder,
    )

    encoder = UpsampleConformerEncoder(
        input_size=config.dim, output_size=config.dim, attention_heads=config.heads, linear_units=config.ff,
        num_blocks=config.layers, input_layer="linear", pos_enc_layer_type="rel_pos_espnet",
        selfattention_layer_type="rel_selfattn", use_cnn_module=False, macaron_style=False,
    )
    encoder.pre_lookahead_layer = PreLookaheadLayer(config.dim, config.pre_lookahead)
    encoder.up_layer = Upsample1D(config.dim, config.dim, 2)
    encoder.up_encoders = encoder.up_encoders[: config.up_layers]
    estimator = ConditionalDecoder(
        in_channels=320, out_channels=80, causal=True, channels=[config.channels], dropout=0.0,
        attention_head_dim=config.est_head_dim, n_blocks=config.block_layers, num_mid_blocks=config.mid_blocks,
        num_heads=config.est_heads, act_fn="gelu", meanflow=config.meanflow,
    )
    flow = CausalMaskedDiffWithXvec(
        input_size=config.dim, encoder=encoder, decoder=CausalConditionalCFM(spk_emb_dim=80, estimator=estimator)
    )
    sharpen(flow)
    return flow.eval()


def ours_from(upstream, config: FlowConfig) -> Flow:
    with torch.device("meta"):
        flow = Flow(config)
    flow.load_state_dict(remap(upstream.state_dict(), FLOW), strict=True, assign=True)
    return flow.eval().requires_grad_(False)


def pair(family: str = "tts"):
    config = tiny(family).flow
    upstream = upstream_flow(config)
    return upstream, ours_from(upstream, config), config


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
