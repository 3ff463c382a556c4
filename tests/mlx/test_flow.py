"""The flow in MLX against the flow in torch, on the same weights and from the same noise."""

import numpy as np
import pytest
import torch
from flow_pairs import random_flow, tokens, voice
from hift_pairs import error
from threads import in_threads
from token_runs import CPU, EXACT, NO_MLX

from chatterbox_opt.engine.mel import MelJob, MelRunner
from chatterbox_opt.engine.noise import RequestNoise

if NO_MLX:
    pytest.skip(NO_MLX, allow_module_level=True)
from mlx_pairs import every_tensor_matters

from chatterbox_opt.mlx.flow import Flow
from chatterbox_opt.mlx.mel import MlxMelRunner

LENGTHS = (3, 17, 1)


def jobs(lengths=LENGTHS, prompt=12):
    return [MelJob(tokens(n, n), voice(prompt + n % 3, n), RequestNoise(CPU, n)) for n in lengths]


@pytest.mark.parametrize(
    ("family", "steps", "changes"),
    [("tts", None, {}), ("tts", 3, dict(cfg_off_last=1)), ("tts", 2, dict(cfm_schedule="sway")), ("turbo", None, {})],
)
def test_torchs_mels_in_a_padded_batch(family, steps, changes):
    """Each equals torch's alone, and the generators end in the same state."""
    flow, options = random_flow(family), EXACT.replace(**changes)
    by_torch, by_mlx = jobs(), jobs()
    wanted = MelRunner(flow, options).render(by_torch, steps)
    runner = MlxMelRunner(flow, options)
    assert runner.fits(len(LENGTHS), 60)
    for got, mel in zip(runner.render(by_mlx, steps), wanted):
        assert error(got, mel) < 1e-4
    for ours, theirs in zip(by_mlx, by_torch):
        assert torch.equal(ours.noise.normal((3,)), theirs.noise.normal((3,)))


@pytest.mark.parametrize("prompt", [20, 290])
def test_torchs_mel_of_a_row_alone(prompt):
    """Unpadded; a long one is attended in several blocks."""
    flow = random_flow()
    (wanted,), (got,) = (r.render(jobs((8,), prompt), 2) for r in (MelRunner(flow, EXACT), MlxMelRunner(flow, EXACT)))
    assert error(got, wanted) < 1e-4


def test_a_row_of_a_batch_is_itself_alone():
    runner = MlxMelRunner(random_flow(), EXACT)
    together, alone = runner.render(jobs(), 2), [runner.render([job], 2)[0] for job in jobs()]
    assert max(map(error, together, alone)) < 1e-5


@pytest.mark.parametrize("family", ["tts", "turbo"])
def test_every_tensor_matters(family):
    every_tensor_matters(random_flow(family), lambda flow: MlxMelRunner(flow, EXACT).render(jobs((4, 2), 3), 1)[0])


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_tensors_are_neither_left_out_nor_passed_over(change):
    flow = random_flow()
    named, name = dict(flow.state_dict()), "encoder.after_norm.bias"
    if change == "missing":
        del named[name]
    else:
        named[name + "2" * (change == "unknown")] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"encoder\.after_norm\.bias"):
        Flow(flow.config, named.items())


@torch.inference_mode()
def test_weights_are_in_memory_once():
    """Torch's flow is unchanged, and reads MLX's memory."""
    flow = random_flow()
    before = {name: tensor.clone() for name, tensor in flow.state_dict().items()}
    runner = MlxMelRunner(flow, EXACT)
    assert all(torch.equal(tensor, before[name]) for name, tensor in flow.state_dict().items())
    for ours, theirs in ((runner.flow.encoder_proj.weight, flow.encoder_proj.weight),
                         (runner.flow.estimator.mid[0].blocks[0].qkv.weight,
                          flow.decoder.estimator.mid[0].blocks[0].attn1.qkv.weight)):
        assert np.array(ours, copy=False).ctypes.data == theirs.data_ptr()
    again = MlxMelRunner(flow, EXACT)  # as another model on the same networks makes it
    assert error(again.render(jobs((4,)), 1)[0], MelRunner(flow, EXACT).render(jobs((4,)), 1)[0]) < 1e-4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_products_in_half_precision_are_close(dtype):
    flow = random_flow()
    (exact,) = MlxMelRunner(flow, EXACT).render(jobs((9,)), 2)
    (got,) = MlxMelRunner(flow, EXACT.replace(s3gen_dtype=dtype)).render(jobs((9,)), 2)
    assert 1e-6 < error(got, exact) < 0.05


def test_each_step_may_be_anothers_thread():
    """MLX fails if one thread begins a lazy array and another computes it."""
    runner = MlxMelRunner(random_flow(), EXACT)
    rows = [runner.row(job) for job in jobs()]
    (solve,) = in_threads(lambda: runner.begin(rows, 3))
    for _ in range(3):
        in_threads(lambda: runner.advance(solve))
    assert max(map(error, solve.mels(), runner.render(jobs(), 3))) < 1e-5
