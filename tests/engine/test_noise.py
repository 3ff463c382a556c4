"""The noise of a request against torch's own draws, in upstream's order."""

import gc

import pytest
import torch

from chatterbox_opt.engine.noise import RequestNoise

pytestmark = pytest.mark.kernels
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
        borrowed = RequestNoise(CPU, None)
        borrowed.exponential(torch.empty(V))
        borrowed.give_back()
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
    borrowed = RequestNoise(CPU, None)
    through_global = draws(borrowed)
    borrowed.give_back()
    torch.manual_seed(99)  # a seeded request does not depend on the global generator
    for mine, wanted in zip(draws(RequestNoise(CPU, 11)), through_global):
        assert torch.equal(mine, wanted)
    torch.manual_seed(11)
    torch.empty(V).exponential_()
    assert torch.equal(through_global[1], torch.randn(1, 80, 6))
    uniform = torch.distributions.Uniform(-torch.pi, torch.pi).sample((1, 9, 1))
    assert (through_global[2] - uniform).abs().max() < 1e-6
    assert torch.equal(through_global[3], torch.randn(1, 9, 4))


def test_requests_share_no_generator():
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
    noise.give_back()


# ---- the global generators -----------------------------------------------------------------------


def seven_then(n: int) -> torch.Tensor:
    """Returns what torch draws after `n` normal numbers from seed 7."""
    torch.manual_seed(7)
    torch.randn(n)
    return torch.rand(3)


def test_a_borrowed_generator_is_given_back_advanced():
    wanted = seven_then(16)
    torch.manual_seed(7)
    noise = RequestNoise(CPU, None)
    got = noise.normal((16,))
    before = torch.random.get_rng_state()
    noise.give_back()
    assert not torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(torch.rand(3), wanted)
    torch.manual_seed(7)
    assert torch.equal(got, torch.randn(16))
    state = torch.random.get_rng_state()
    noise.give_back()
    assert torch.equal(torch.random.get_rng_state(), state), "once is enough"


def test_a_second_borrower_gets_its_own_seed():
    """Neither draws the other's numbers, and each gives back only what it borrowed."""
    torch.manual_seed(7)
    first = RequestNoise(CPU, None)
    a = first.normal((16,))
    second = RequestNoise(CPU, None)  # its seed is drawn from the global generator, as any program's own draw is
    b = second.normal((16,))
    assert not set(a.tolist()) & set(b.tolist())
    torch.manual_seed(7)
    seed = int(torch.randint(2**62, ()).item())
    assert torch.equal(b, RequestNoise(CPU, seed).normal((16,)))
    moved = torch.random.get_rng_state()
    second.give_back()
    assert torch.equal(torch.random.get_rng_state(), moved)
    assert not RequestNoise(CPU, None)._lent, "the first one still has them"
    first.give_back()
    third = RequestNoise(CPU, None)
    assert third._lent
    third.give_back()


def test_the_global_generator_is_not_reset_after_a_programs_own_draws():
    torch.manual_seed(7)
    noise = RequestNoise(CPU, None)
    noise.normal((16,))
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    noise.give_back()
    assert torch.equal(torch.random.get_rng_state(), state)
    again = RequestNoise(CPU, None)
    assert again._lent, "the loan is over even so"
    again.give_back()


def test_a_borrower_that_is_dropped_frees_the_loan():
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    noise = RequestNoise(CPU, None)
    noise.normal((16,))
    del noise
    gc.collect()
    assert torch.equal(torch.random.get_rng_state(), state), "what nobody gave back was never drawn"
    after = RequestNoise(CPU, None)
    assert after._lent
    after.give_back()


@pytest.mark.parametrize("seed", [None, 7])
def test_a_fork_depends_on_the_state_and_does_not_change_it(seed):
    torch.manual_seed(7)
    noise = RequestNoise(CPU, seed)
    noise.normal((3,))
    state, fork = noise.state(), noise.fork()
    drawn = fork.normal((16,))
    assert torch.equal(noise.state(), state)
    assert torch.equal(noise.fork().normal((16,)), drawn)
    assert not set(noise.normal((16,)).tolist()) & set(drawn.tolist())
    assert not torch.equal(noise.fork().normal((16,)), drawn)
    assert not fork._lent
    noise.give_back()
