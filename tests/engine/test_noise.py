"""One request's randomness against torch's own draws, in upstream's order."""

import pytest
import torch

from chatterbox_opt.engine.noise import RequestNoise

CPU = torch.device("cpu")
V = 8194


@pytest.fixture
def probs():
    return (5 * torch.randn(V, generator=torch.Generator().manual_seed(1))).softmax(-1)


def test_an_exponential_race_is_torchs_multinomial(probs):
    for seed in range(50):
        torch.manual_seed(seed)
        wanted = torch.multinomial(probs[None], 1).item()
        after = torch.rand(2)
        noise = RequestNoise(CPU, seed)
        assert (probs / noise.exponential(torch.empty(V))).argmax().item() == wanted
        assert torch.equal(noise.normal((2,)), _normals_after(seed)), "as many numbers as multinomial takes"
        torch.manual_seed(seed)
        RequestNoise(CPU, None).exponential(torch.empty(V))
        assert torch.equal(torch.rand(2), after)


def _normals_after(seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    torch.empty(V).exponential_(generator=g)
    return torch.randn(2, generator=g)


@pytest.mark.parametrize("k", [2, 8])
def test_a_block_is_its_draws_one_by_one(k):
    block = RequestNoise(CPU, 3).exponential(torch.empty(k, V))
    single = RequestNoise(CPU, 3)
    assert torch.equal(block, torch.stack([single.exponential(torch.empty(V)) for _ in range(k)]))


def test_a_seed_is_manual_seed():
    """Tokens, flow noise, phases, source noise: on the CPU all from one stream, whoever owns the generator."""

    def draws(noise):
        return [noise.exponential(torch.empty(V)), noise.normal((1, 80, 6)), noise.phases(9), noise.normal((1, 9, 4))]

    torch.manual_seed(11)
    through_global = draws(RequestNoise(CPU, None))
    torch.manual_seed(99)  # what the global generator does is no concern of a seeded request
    for mine, wanted in zip(draws(RequestNoise(CPU, 11)), through_global):
        assert torch.equal(mine, wanted)
    torch.manual_seed(11)
    torch.empty(V).exponential_()
    assert torch.equal(through_global[1], torch.randn(1, 80, 6))
    uniform = torch.distributions.Uniform(-torch.pi, torch.pi).sample((1, 9, 1))
    assert (through_global[2] - uniform).abs().max() < 1e-6
    assert torch.equal(through_global[3], torch.randn(1, 9, 4))


def test_requests_do_not_share():
    a, b = RequestNoise(CPU, 5), RequestNoise(CPU, 5)
    a.exponential(torch.empty(V))
    assert torch.equal(b.normal((3,)), torch.randn(3, generator=torch.Generator().manual_seed(5)))


@pytest.mark.parametrize("seed", [None, 7])
def test_draws_can_be_undone(seed):
    torch.manual_seed(7)
    noise = RequestNoise(CPU, seed)
    noise.exponential(torch.empty(V))
    state = noise.state()
    first = noise.normal((4,))
    noise.restore(state)
    assert torch.equal(noise.normal((4,)), first)
