"""Each filter against transformers' and on hand-written probabilities; whole draws in upstream's order."""

import pytest
import torch

from chatterbox_opt.engine.sampling import (
    Filters,
    RowParams,
    cool,
    draw,
    guide,
    keep_min_p,
    keep_top,
    likeliest,
    next_token,
    next_token_turbo,
    penalize,
)

pytestmark = pytest.mark.kernels
ALL = Filters(min_p=True, top_p=True, top_k=True)
START = 6561


def logits(rows: int = 3, v: int = 8194, seed: int = 0) -> torch.Tensor:
    return 5 * torch.randn(rows, v, generator=torch.Generator().manual_seed(seed))


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None]


def by_hand(*probs: float) -> torch.Tensor:
    return torch.tensor([probs]).log()


def kept(filtered: torch.Tensor) -> list[int]:
    return filtered[0].isfinite().nonzero().flatten().tolist()


def params(n: int = 1, **changes: float) -> RowParams:
    values = dict(cfg=0.5, temperature=1.0, min_p=0.0, top_p=1.0, top_k=0, penalty=1.0) | changes
    rows = {name: torch.full((n, 1), float(value)) for name, value in values.items()}
    return RowParams(**rows | {"top_k": rows["top_k"].long()})


# ---- by hand -------------------------------------------------------------------------------------


def test_guidance():
    got = guide(torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 3.0]]), column(0.5))
    assert got.tolist() == [[2.5, 0.0]]


def test_penalty_pushes_down_on_both_sides_of_zero():
    seen = torch.tensor([[True, True, False, False]])
    got = penalize(torch.tensor([[3.0, -3.0, 3.0, -3.0]]), seen, column(1.5))
    assert got.tolist() == [[2.0, -4.5, 3.0, -3.0]]


def test_min_p():
    p = by_hand(0.5, 0.3, 0.15, 0.05)
    assert kept(keep_min_p(p, column(0.0))) == [0, 1, 2, 3]
    assert kept(keep_min_p(p, column(0.2))) == [0, 1, 2]
    assert kept(keep_min_p(p, column(0.61))) == [0]
    assert kept(keep_min_p(p, column(1.0))) == [0]


def test_top_p():
    p = by_hand(0.05, 0.5, 0.15, 0.3)
    assert kept(keep_top(p, top_p=column(1.0))) == [0, 1, 2, 3]
    assert kept(keep_top(p, top_p=column(0.9))) == [1, 2, 3]
    assert kept(keep_top(p, top_p=column(0.6))) == [1, 3]
    assert kept(keep_top(p, top_p=column(1e-6))) == [1], "the likeliest always stays"


def test_top_k():
    p = by_hand(0.1, 0.4, 0.2, 0.3)
    assert kept(keep_top(p, top_k=torch.tensor([[0]]))) == [0, 1, 2, 3]
    assert kept(keep_top(p, top_k=torch.tensor([[2]]))) == [1, 3]
    assert kept(keep_top(p, top_k=torch.tensor([[99]]))) == [0, 1, 2, 3]


TIES = {
    "none": lambda x: x,
    "at the edge": lambda x: x.scatter(1, x.argsort(-1)[:, -1003:-997], 7.0),
    "within": lambda x: x.round(decimals=1),
    "of what an earlier filter took": lambda x: x.masked_fill(x < 8, -torch.inf),
    "no numbers": lambda x: torch.cat([x[:2], x[2:] * torch.nan]),
}


@pytest.mark.parametrize("tied", TIES)
def test_what_top_k_leaves_is_sorted_as_among_all(tied):
    x = TIES[tied](logits())
    every, some = x.sort(-1), likeliest(x, 1000)
    assert (some[0].shape[1] == 1000) == (tied == "none"), "equal logits are left to the sort of all"
    for all_of_it, part in zip(every, some):
        assert torch.equal(all_of_it[:, -part.shape[1] :].nan_to_num(), part.nan_to_num())
    top_k, top_p = torch.tensor([[1000], [3], [700]]), column(0.95, 0.5, 1.0)
    wanted = keep_top(x, top_k, top_p)
    assert torch.equal(keep_top(x, top_k, top_p, most=1000).nan_to_num(), wanted.nan_to_num())


def test_the_shortest_time_wins():
    p = by_hand(0.5, 0.3, 0.2)
    assert draw(p, torch.tensor([[1.0, 0.1, 1.0]]), column(1.0)).tolist() == [1]
    assert draw(p, torch.tensor([[1.0, 0.1, 1.0]]), column(0.0)).tolist() == [0], "greedy does not look at the noise"


def test_draws_have_the_frequencies_of_their_probabilities():
    n, p = 20_000, by_hand(0.6, 0.3, 0.1)
    noise = torch.empty(n, 3).exponential_(generator=torch.Generator().manual_seed(0))
    share = draw(p.expand(n, -1), noise, torch.ones(n, 1)).bincount(minlength=3) / n
    assert (share - torch.tensor([0.6, 0.3, 0.1])).abs().max() < 0.01


def test_filtered_tokens_are_never_drawn():
    p = by_hand(0.5, 0.3, 0.15, 0.05)
    noise = torch.tensor([[1.0, 1.0, 1.0, 1e-30]])  # the last would win whatever its probability
    assert next_token(p, torch.zeros(1, 4, dtype=torch.bool), noise, params(), ALL).tolist() == [3]
    seen = torch.zeros(1, 4, dtype=torch.bool)
    for change in (dict(min_p=0.2), dict(top_p=0.9), dict(top_k=3)):
        assert next_token(p, seen, noise, params(**change), ALL).tolist() != [3]


# ---- against transformers ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def warpers():
    return pytest.importorskip("transformers.generation.logits_process", reason="transformers is not installed")


@pytest.mark.parametrize("value", [0.0, 0.05, 0.3, 1.0])
def test_min_p_is_transformers(warpers, value):
    x = logits()
    assert torch.equal(keep_min_p(x, column(*[value] * 3)), warpers.MinPLogitsWarper(value)(None, x))


@pytest.mark.parametrize("value", [0.1, 0.5, 0.8, 0.95, 0.999])
def test_top_p_is_transformers(warpers, value):
    x = logits()
    assert torch.equal(keep_top(x, top_p=column(*[value] * 3)), warpers.TopPLogitsWarper(value)(None, x))


@pytest.mark.parametrize(("k", "p"), [(1000, 0.95), (3, 0.5), (1, 0.999), (8194, 0.1), (20_000, 0.8)])
def test_both_are_transformers_one_after_the_other(warpers, k, p):
    x = logits()
    wanted = warpers.TopPLogitsWarper(p)(None, warpers.TopKLogitsWarper(k)(None, x))
    assert torch.equal(keep_top(x, torch.full((3, 1), k), column(p, p, p)), wanted)


@pytest.mark.parametrize("value", [0.5, 1.0, 1.2, 2.0])
def test_penalty_is_transformers(warpers, value):
    x = logits()
    ids = torch.randint(0, 8194, (3, 40), generator=torch.Generator().manual_seed(2))
    ids[:, 0], ids[:, 1] = START, ids[:, 2]  # the start token counts; a token drawn twice counts once
    seen = torch.zeros(3, 8194, dtype=torch.bool).scatter_(1, ids, True)
    wanted = warpers.RepetitionPenaltyLogitsProcessor(value)(ids, x)
    assert torch.equal(penalize(x, seen, column(*[value] * 3)), wanted)


def test_temperature_is_transformers(warpers):
    x = logits()
    assert torch.equal(cool(x, column(0.8, 0.8, 0.8)), warpers.TemperatureLogitsWarper(0.8)(None, x))
    assert torch.equal(cool(x, column(1.0, 1.0, 0.0)), x)


# ---- rows and orders -----------------------------------------------------------------------------


@pytest.mark.parametrize("pick", [next_token, next_token_turbo])
def test_rows_keep_their_own_parameters(pick):
    """Rows with and without a filter in one batch: each as if alone, with every filter on."""
    x, noise = logits(4), torch.empty(4, 8194).exponential_(generator=torch.Generator().manual_seed(0))
    seen = torch.rand(4, 8194, generator=torch.Generator().manual_seed(3)) < 0.3
    rows = [
        params(temperature=0.8, min_p=0.05, penalty=1.2), params(top_p=0.7, top_k=100), params(temperature=0.0),
        params(temperature=1.3, penalty=2.0),
    ]
    together = RowParams(*(torch.cat(column) for column in zip(*(vars(r).values() for r in rows))))
    got = pick(x, seen, noise, together, ALL)
    for i, row in enumerate(rows):
        needs = Filters(min_p=bool(row.min_p > 0), top_p=bool(row.top_p < 1), top_k=bool(row.top_k > 0))
        alone = pick(x[i : i + 1], seen[i : i + 1], noise[i : i + 1], row, needs)
        assert got[i] == alone[0]


def test_orders_differ_and_are_upstreams(warpers):
    """Turbo applies the repetition penalty after the filters, the others before them."""
    x = torch.tensor([[4.0, 3.0, 2.9, -10.0]])
    seen, noise = torch.tensor([[True, False, False, False]]), torch.ones(1, 4)
    ids = torch.tensor([[0]])
    p = params(top_k=1, penalty=2.0)
    assert next_token_turbo(x, seen, noise, p, ALL).tolist() == [0]
    assert next_token(x, seen, noise, p, ALL).tolist() == [1]
    turbo = warpers.RepetitionPenaltyLogitsProcessor(2.0)(ids, warpers.TopKLogitsWarper(1)(ids, x))
    assert turbo.argmax().item() == 0
    # Turbo ignores min-p, as upstream does
    loud = torch.tensor([[1.0, 1.0, 1.0, 1e-30]])
    assert next_token_turbo(x, seen, loud, params(min_p=1.0), ALL).tolist() == [3]


@pytest.mark.parametrize("seed", range(8))
def test_whole_draws_are_upstreams(warpers, seed):
    """Penalty, temperature, min-p, top-p and multinomial in upstream's order, against one call here."""
    x = logits(1, seed=seed)
    ids = torch.cat([torch.tensor([[START]]), x.topk(30).indices[:, ::2]], 1)
    y = warpers.RepetitionPenaltyLogitsProcessor(1.2)(ids, x) / 0.8
    y = warpers.TopPLogitsWarper(0.9)(ids, warpers.MinPLogitsWarper(0.05)(ids, y))
    torch.manual_seed(seed)
    wanted = torch.multinomial(y.softmax(-1), 1)[0]
    torch.manual_seed(seed)
    noise = torch.empty(1, 8194).exponential_()
    seen = torch.zeros(1, 8194, dtype=torch.bool).scatter_(1, ids, True)
    p = params(temperature=0.8, min_p=0.05, top_p=0.9, penalty=1.2)
    assert torch.equal(next_token(x, seen, noise, p, Filters(True, True, False)), wanted)
