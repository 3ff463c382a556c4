"""HiFT in MLX against HiFT in torch, on the same weights."""

import pytest
import torch
from hift_pairs import error, our_hift, some_mel, upstream_hift
from token_runs import CPU, EXACT, NO_MLX

from chatterbox_opt.engine.chunks import WaveState
from chatterbox_opt.engine.noise import RequestNoise
from chatterbox_opt.engine.wav import WavRunner, fade_in

if NO_MLX:
    pytest.skip(NO_MLX, allow_module_level=True)
from mlx_pairs import every_tensor_matters

from chatterbox_opt.mlx.hift import SOURCE, Hift
from chatterbox_opt.mlx.wav import MlxWavRunner


@pytest.fixture(scope="module")
def hift():
    return our_hift(upstream_hift())


def seeds(*numbers: int) -> list[RequestNoise]:
    return [RequestNoise(CPU, n) for n in numbers]


@pytest.mark.parametrize("frames", [2, 60])
def test_torchs_wave_and_generator(hift, frames):
    mel, noises = some_mel(frames), seeds(3, 3)
    (wanted,), (got,) = (kind(hift, EXACT).render([mel], [noise])
                         for kind, noise in zip((WavRunner, MlxWavRunner), noises))
    assert error(got, wanted) < 1e-4
    assert torch.equal(*(noise.normal((3,)) for noise in noises))


def test_windows_side_by_side_are_the_wave_as_a_whole(hift):
    mels = [some_mel(n, n) for n in (150, 130, 30)]
    runner = MlxWavRunner(hift, EXACT.replace(wav_chunk=100))
    assert runner._fits(2, 50), "more than one window at a time"
    for got, wanted in zip(runner.render(mels, seeds(1, 2, 3)), WavRunner(hift, EXACT).render(mels, seeds(1, 2, 3))):
        assert error(got, wanted) < 1e-4


@torch.inference_mode()
def test_a_streams_wave_is_that_of_the_whole_mel(hift):
    mel, runner, whole = some_mel(110), MlxWavRunner(hift, EXACT), WavRunner(hift, EXACT)
    state, parts = WaveState(runner, *seeds(0)), []
    for a, b in ((0, 50), (50, 80), (80, 110)):
        window = state.window(mel[:, a:b], last=b == 110)
        parts.append(state.accept(*runner.decode(*([part] for part in window))))
    (wanted,) = whole.decode([mel], [whole.spectrum(mel, state.phases, state.normal)])
    assert error(torch.cat(parts), fade_in(wanted)) < 1e-4


def test_every_tensor_matters(hift):
    """The source's in torch, the others in MLX."""
    every_tensor_matters(hift, lambda other: MlxWavRunner(other, EXACT).render([some_mel(3)], seeds(0))[0])


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_tensors_are_neither_left_out_nor_passed_over(hift, change):
    named = dict(hift.state_dict())
    assert any(name.startswith(SOURCE) for name in named)
    if change == "missing":
        del named["conv_post.bias"]
    else:
        named["conv_post.bias2"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"conv_post\.bias"):
        Hift(hift.cfg, named.items())


def test_half_precision_is_close(hift):
    mel = some_mel(30)
    exact, got = (MlxWavRunner(hift, EXACT.replace(s3gen_dtype=dtype)).render([mel], seeds(0))[0]
                  for dtype in ("float32", "float16"))
    assert 1e-6 < error(got, exact) < 0.05
