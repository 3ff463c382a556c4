"""The x-vector, with every batch norm folded, against upstream's network."""

import dataclasses

import pytest
import torch

from chatterbox_opt.config import tiny
from chatterbox_opt.models.campplus import Campplus
from chatterbox_opt.models.mel import kaldi_fbank
from chatterbox_opt.weights.keymap import CAMPPLUS, remap

pytestmark = pytest.mark.kernels
CFG = dataclasses.replace(tiny("tts").campplus, block_layers=(3, 4, 2))


@pytest.fixture
def pair(upstream):
    from upstream_tiny import campplus, converted

    theirs = campplus(CFG).eval()
    with torch.no_grad():
        for name, tensor in [*theirs.named_parameters(), *theirs.named_buffers()]:
            if name.endswith("running_var") or (("norm" in name or "bn" in name) and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("running_mean") or name.endswith("bias"):
                tensor.normal_(0.0, 0.2)
        theirs.xvector.transit1.nonlinear.batchnorm.weight[::3].neg_()  # a trained scale may be negative
    return converted(theirs, Campplus, CFG, CAMPPLUS), theirs


@pytest.mark.parametrize("frames", [20, 199, 200, 201, 398, 400, 998])
def test_embedding_is_upstreams(pair, frames: int):
    ours, theirs = pair
    fbank = torch.randn(2, frames, 80)
    with torch.inference_mode():
        mine, other = ours(fbank), theirs(fbank)
    assert mine.shape == (2, 192)
    assert (mine - other).abs().max() <= 1e-5 * other.abs().max()


def test_from_sound_as_upstream(pair):
    ours, theirs = pair
    wav = torch.randn(30_000) * 0.1
    with torch.inference_mode():
        mine, other = ours(kaldi_fbank(wav)[None]), theirs.inference(wav[None])
    assert (mine - other).abs().max() <= 1e-4 * other.abs().max()


def test_a_row_is_what_it_is_alone(pair):
    ours, _ = pair
    fbank = torch.randn(3, 250, 80)
    with torch.inference_mode():
        together = ours(fbank)
        for i in range(3):
            torch.testing.assert_close(together[i : i + 1], ours(fbank[i : i + 1]), atol=1e-5, rtol=1e-5)


def test_no_batch_norm_is_left(pair):
    ours, theirs = pair
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in ours.modules())
    assert not any("running" in k or "batches" in k for k in remap(theirs.state_dict(), CAMPPLUS))
