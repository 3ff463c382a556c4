"""The kernel that draws against the plain functions: in Triton's interpreter, and on a GPU if there is one."""

from __future__ import annotations

import pytest
import torch
from draws import FILTERS, drawn_plainly, some_draw

from chatterbox_opt.engine import sampling as plain
from chatterbox_opt.engine.kernels import sampling

triton = pytest.importorskip("triton")


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("vocab", [3, 1000, 8194])
@pytest.mark.usefixtures("interpreted")
@torch.inference_mode()
def test_sampling(vocab, filters):
    for _ in range(1 if filters.top_p else 5):  # the interpreter is slow
        given = some_draw(vocab)
        got = sampling.sample(*given, filters)
        assert got.dtype == torch.long
        assert torch.equal(got, drawn_plainly(*given, filters))


@pytest.mark.parametrize("filters", [f for f in FILTERS if not f.min_p], ids=str)
@pytest.mark.usefixtures("interpreted")
@torch.inference_mode()
def test_sampling_in_turbos_order(filters):
    for _ in range(2):
        given = some_draw(300)
        assert torch.equal(sampling.sample(*given, filters, True), drawn_plainly(*given, filters, True))


@pytest.mark.parametrize("top_p", [[0.0, 0.3, 0.95, 1.0, 0.5], [0.95, 0.95, 0.0, 0.3, 0.3]])
@pytest.mark.usefixtures("interpreted")
@torch.inference_mode()
def test_top_filters_keep_what_sorting_keeps(top_p):
    """Of many equal logits too, as half precision makes them. Without noise to hide it, each draw is of what is left:
    the noise of one token after the other is made so small that it would win."""
    logits, cond, uncond, seen, noise, params = some_draw(20)
    logits, filters = (logits * 2).round() / 2, plain.Filters(False, True, True)
    params.top_k[:, 0] = torch.tensor([0, 1, 7, 15, 50])
    params.top_p[:, 0], params.temperature[:] = torch.tensor(top_p), 0.8
    for wanted in range(20):
        noise[:] = 1.0
        noise[:, wanted] = 1e-6
        given = logits, cond, uncond, seen, noise, params, filters
        assert torch.equal(sampling.sample(*given), drawn_plainly(*given))


@pytest.mark.usefixtures("interpreted")
@torch.inference_mode()
def test_top_filters_take_both_zeros_for_equal():
    logits, cond, _, seen, noise, params = some_draw(20)
    logits[:], seen[:], params.cfg[:], params.temperature[:] = -1.0, False, 0.0, 1.0
    logits[:, 3], logits[:, 7], logits[:, 9] = -0.0, 0.0, 2.0
    params.top_k[:], params.top_p[:], noise[:, 3] = 2, 1.0, 1e-6
    given = logits, cond, cond, seen, noise, params, plain.Filters(False, True, True), True
    assert torch.equal(sampling.sample(*given), torch.full((5,), 3))
    assert torch.equal(drawn_plainly(*given), torch.full((5,), 3))


@pytest.mark.usefixtures("interpreted")
@torch.inference_mode()
def test_sampling_takes_the_first_of_equals():
    logits, cond, uncond, seen, noise, params = some_draw(100)
    logits[:], noise[:], seen[:] = 1.0, 1.0, False
    assert not sampling.sample(logits, cond, uncond, seen, noise, params, FILTERS[0]).any()


@pytest.mark.parametrize("turbo", [False, True])
@pytest.mark.usefixtures("interpreted")
@torch.inference_mode()
def test_sampling_of_nan_stays_in_the_vocabulary(turbo, monkeypatch):
    """Its token is dropped, but an index outside of all tables would end every other call on the device too."""
    argmax = triton.language.argmax

    def compiled(x, axis):  # keeps the second of two unless the first is greater, which the interpreter does not
        lost = torch.from_numpy(x.handle.data).isnan().any()
        return triton.language.full((), len(x.handle.data) - 1, triton.language.int32) if lost else argmax(x, axis)

    monkeypatch.setattr(triton.language, "argmax", compiled)
    logits, *given = some_draw(300)
    logits[:] = torch.nan
    assert sampling.sample(logits, *given, FILTERS[2], turbo).max() < 300


@pytest.mark.gpu
@pytest.mark.parametrize("filters", FILTERS, ids=str)
@torch.inference_mode()
def test_sampling_of_nan_on_a_device(filters):
    logits, *given = some_draw(8194, torch.device("cuda"))
    logits[:] = torch.nan
    assert sampling.sample(logits, *given, filters).max() < 8194
