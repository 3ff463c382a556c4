"""Loading weights into MLX: all of them, packed one by one."""

import dataclasses

import pytest
import torch
from t3_pairs import random_t3
from token_runs import EXACT, NO_MLX

from chatterbox_opt import OptimizedChatterboxTTS
from chatterbox_opt.config import tiny
from chatterbox_opt.executor import load_t3
from chatterbox_opt.models.t3 import T3 as TorchT3
from chatterbox_opt.weights import layout
from chatterbox_opt.weights.random_init import write_checkpoint

if NO_MLX:
    pytest.skip(NO_MLX, allow_module_level=True)
import mlx.core as mx

from chatterbox_opt.mlx.arrays import to_mlx, to_torch
from chatterbox_opt.mlx.t3 import T3


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_tensors_are_neither_left_out_nor_passed_over(change):
    t3 = random_t3("tts")
    named = dict(t3.state_dict())
    if change == "missing":
        del named["tfmr.norm.weight"]
    elif change == "unknown":
        named["tfmr.adapter.weight"] = torch.zeros(3)
    else:
        named["tfmr.norm.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"tfmr\.(norm|adapter)\.weight"):
        T3(t3.config, named.items())


@pytest.mark.parametrize("family", ["tts", "mtl", "turbo", "nano"])
@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_a_checkpoint_that_does_not_fit_is_refused(family, change):
    config = tiny(family)
    state = {name: torch.zeros(shape) for name, shape in layout.t3(config.t3).items()}
    if change == "unknown":
        state["tfmr.adapter.weight"] = torch.zeros(3)
    else:
        del state["speech_head.weight"]
    with pytest.raises((ValueError, KeyError), match=r"adapter|speech_head"):
        load_t3(state, config, "mlx", EXACT)


def test_a_folders_weights_are_those_of_torch(tmp_path):
    folder = write_checkpoint(tmp_path / "model", "turbo")
    by_torch = OptimizedChatterboxTTS._load(folder, "cpu", "turbo", engine=EXACT)
    by_mlx = OptimizedChatterboxTTS._load(folder, "mlx", "turbo", engine=EXACT)
    assert isinstance(by_mlx.t3.network, T3)
    assert torch.equal(to_torch(by_mlx.t3.speech_emb), by_torch.t3.speech_emb.weight)
    assert torch.equal(to_torch(by_mlx.t3.tfmr.layers[1][4].weight), by_torch.t3.tfmr.h[1].mlp.c_fc.weight)


def test_no_more_than_one_tensor_exists_twice():
    """Each is packed and freed before the next one is read."""
    config = dataclasses.replace(tiny("tts").t3, layers=12, dim=256, ff=1024)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in TorchT3(config).state_dict().items()}
    largest = 4 * max(shape.numel() for shape in shapes.values())
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    t3 = T3(config, ((name, torch.ones(shape)) for name, shape in shapes.items()), "bfloat16", "int8")
    held = mx.get_active_memory() - before
    assert t3.tfmr.layers[0][1].bits == 8
    assert held < 4 * sum(shape.numel() for shape in shapes.values()) / 2.5
    assert mx.get_peak_memory() - before < held + 2 * largest



@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.long, torch.bool])
def test_what_crosses_over_is_a_copy(dtype):
    tensor = torch.tensor([[0, 1, 1], [1, 0, 5]]).to(dtype)
    array = to_mlx(tensor)
    wanted = tensor.clone()
    tensor.zero_()
    back = to_torch(array.astype(mx.float32) if dtype == torch.bfloat16 else array)
    assert torch.equal(back.to(dtype), wanted)
    assert back.device.type == "cpu"
