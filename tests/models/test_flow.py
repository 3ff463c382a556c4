"""The flow against upstream's on the same weights and noise, float32."""

import dataclasses

import pytest
import torch
from flow_pairs import pair, random_flow, tokens, voice

from chatterbox_opt.models.conformer import position_waves
from chatterbox_opt.models.flow import time_span

pytestmark = pytest.mark.kernels


def close(got, wanted, tolerance=1e-4):
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() < tolerance * wanted.abs().max()


@pytest.mark.parametrize("n", [1, 2, 30, 300])  # 300 tokens: several blocks of queries
@torch.inference_mode()
def test_conformer(n):
    upstream, ours, _ = pair()
    x = torch.randn(1, n, upstream.input_size)
    wanted, _ = upstream.encoder(x, torch.tensor([n]))
    close(ours.encoder(x), wanted)


@pytest.mark.parametrize("family", ["tts", "turbo"])
@torch.inference_mode()
def test_estimator(family):
    upstream, ours, config = pair(family)
    x, mu, cond = (torch.randn(1, 80, 60) for _ in range(3))
    speaker = torch.randn(1, 80)
    t, r = torch.tensor([0.3]), torch.tensor([0.7])
    wanted = upstream.decoder.estimator(
        x=x, mask=torch.ones(1, 1, 60), mu=mu, t=t, spks=speaker, cond=cond, r=r if config.meanflow else None
    )
    net = ours.decoder.estimator
    table = net.time_table(torch.cat([t, r]))
    constant = net.constant(mu.mT, speaker, cond.mT)
    close(net(x.mT, table[0], constant).mT, wanted)


@pytest.mark.parametrize("family", ["tts", "turbo"])
@pytest.mark.parametrize("steps", [2, 10])
@torch.inference_mode()
def test_whole_flow(family, steps):
    upstream, ours, config = pair(family)
    v, ids = voice(), tokens(40)
    torch.manual_seed(0)
    tail = torch.randn(1, 80, 80) if config.meanflow else None
    wanted, _ = upstream.inference(
        token=ids[None], token_len=torch.tensor([40]), finalize=True, n_timesteps=steps, noised_mels=tail,
        meanflow=config.meanflow, **v,
    )
    torch.manual_seed(0)
    tail = torch.randn(1, 80, 80) if config.meanflow else None
    noise = torch.randn(1, 80, 130)
    if tail is not None:
        noise[:, :, 50:] = tail
    mu = ours.encode(torch.cat([v["prompt_token"], ids[None]], 1))
    prompt = torch.nn.functional.pad(v["prompt_feat"], (0, 0, 0, 80))
    span = time_span(steps, config.meanflow)
    times = ours.decoder.estimator.time_table(span)
    conditions, x = ours.conditions(mu, ours.speaker(v["embedding"]), prompt), noise.mT
    for time, dt in zip(times, span.diff()):
        x = ours.euler(x, time, dt, conditions)
    close(x.mT[:, :, 50:], wanted)


@torch.inference_mode()
def test_a_step_without_guidance_asks_once():
    """It equals the guided step at rate 0, with half of the work."""
    flow, v = random_flow("tts"), voice()
    mu, prompt = flow.encode(v["prompt_token"]), v["prompt_feat"]
    conditions, x = flow.conditions(mu, flow.speaker(v["embedding"]), prompt), torch.randn(1, 50, 80)
    span = time_span(4, False)
    time, dt, rows = flow.decoder.estimator.time_table(span)[1], span[2] - span[1], []
    hook = flow.decoder.estimator.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[2][0])))
    usual, plain = (flow.euler(x, time, dt, conditions, unguided=off) for off in (False, True))
    flow.config = dataclasses.replace(flow.config, cfg_rate=1e-9)
    weak = flow.euler(x, time, dt, conditions)
    hook.remove()
    assert rows == [2, 1, 2]
    close(plain, weak, 1e-5)
    assert (usual - plain).abs().max() > 1e-3


def test_schedules():
    assert torch.equal(time_span(2, True), torch.tensor([0.0, 0.5, 1.0]))
    cosine = time_span(10, False)
    assert cosine[0] == 0
    assert abs(float(cosine[-1]) - 1) < 1e-6
    assert abs(float(cosine[5]) - (1 - 2**-0.5)) < 1e-6
    sway = time_span(6, False, "sway")
    assert (sway.diff() > 0).all()
    assert sway[0] == 0
    assert abs(float(sway[-1]) - 1) < 1e-6
    assert (sway[1:-1] < time_span(6, False)[1:-1]).all()


def test_waves_of_any_length():
    waves = position_waves(8, 7000, torch.device("cpu"))
    assert waves.shape == (13999, 8)
    assert torch.equal(waves[6999], torch.tensor([0.0, 1.0] * 4)), "a key meets itself at distance 0"
