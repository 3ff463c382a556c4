"""HiFT against upstream's on the same weights and the same noise, float32."""

import pytest
import torch
from hift_pairs import TINY, error, noise_of, our_hift, some_mel, upstream_hift

from chatterbox_opt.config import HiftConfig
from chatterbox_opt.models.hift import reach, snake

pytestmark = pytest.mark.kernels


@pytest.fixture(scope="module")
def pair():
    net = upstream_hift()
    return net, our_hift(net)


@torch.inference_mode()
def both(pair, frames: int):
    upstream, ours = pair
    mel = some_mel(frames)[None]
    torch.manual_seed(3)
    wanted, source = upstream.inference(mel)
    torch.manual_seed(3)
    return wanted, source[:, 0], ours, mel, noise_of(frames)


def test_same_wave(pair):
    wanted, source, ours, mel, noise = both(pair, 60)
    with torch.inference_mode():
        f0 = ours.f0_predictor(mel)
        made = ours.source(mel, *noise)
        got = ours(mel, *noise)
        deaf = ours.decode(mel, ours.spectrum(torch.zeros_like(made)))
        mute = ours.decode(torch.zeros_like(mel), ours.spectrum(made))
    assert f0.min() < 10 < f0.median(), "unvoiced frames have to be there, and more voiced ones"
    assert 0.2 < wanted.abs().max() < 0.99
    assert error(made, source) < 1e-5
    assert error(got, wanted) < 1e-4
    assert error(deaf, wanted) > 0.05, "the source must matter"
    assert error(mute, wanted) > 0.05, "the mel must matter"


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_shortest(pair, frames):
    wanted, _, ours, mel, noise = both(pair, frames)
    with torch.inference_mode():
        assert error(ours(mel, *noise), wanted) < 1e-4


def test_phases_of_a_minute(pair):
    """The fundamental is equal to the last bit, and summed with upstream's rounding; otherwise phases drift apart."""
    wanted, source, ours, mel, noise = both(pair, 3000)
    with torch.inference_mode():
        assert torch.equal(ours.f0_predictor(mel), pair[0].f0_predictor(mel))
        assert error(ours.source(mel, *noise), source) < 1e-5
        assert error(ours(mel, *noise), wanted) < 1e-4


def test_transforms_are_torchs(pair):
    _, ours = pair
    x = torch.randn(2, 480 * 3)
    window = torch.hann_window(16)
    wanted = torch.view_as_real(torch.stft(x, 16, 4, window=window, return_complex=True))  # (B, F, T, 2)
    got = ours.spectrum(x)
    assert error(got, torch.cat([wanted[..., 0], wanted[..., 1]], 1).transpose(1, 2)) < 1e-5
    log = torch.randn(2, 361, 18)
    magnitude, phase = log[..., :9].exp(), log[..., 9:].sin()
    wanted = torch.istft(torch.polar(magnitude, phase).transpose(1, 2), 16, 4, window=window).clamp(-0.99, 0.99)
    assert error(ours._wave(log), wanted) < 1e-5


@torch.inference_mode()
def test_reach_is_what_the_layers_have(pair):
    _, ours = pair
    mel, spectrum = some_mel(80)[None], torch.randn(1, 80 * 120 + 1, 18)
    base, far = ours.decode(mel, spectrum), reach(TINY)
    one = mel.clone()
    one[..., 40] += 3
    touched = (ours.decode(one, spectrum) != base)[0].view(-1, 480).any(1).nonzero().flatten()
    assert 40 - far <= touched.min() <= 40 - far + 2
    assert 40 + far - 2 <= touched.max() <= 40 + far
    inside = ours.decode(mel[..., 20:60], spectrum[:, 20 * 120 : 60 * 120 + 1])
    kept = slice((20 + far) * 480, (60 - far) * 480)
    assert error(inside[:, far * 480 : -far * 480], base[:, kept]) < 1e-5
    less = far - 8
    kept = slice((20 + less) * 480, (60 - less) * 480)
    assert error(inside[:, less * 480 : -less * 480], base[:, kept]) > 1e-5


@pytest.mark.parametrize("alpha", [0.0, 1e-12, -0.4])
def test_folded_snake_with_odd_frequencies(alpha):
    net = upstream_hift()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "activations" in name:
                p[::3] = alpha
    mel = some_mel(10)[None]
    torch.manual_seed(3)
    wanted, _ = net.inference(mel)
    torch.manual_seed(3)
    with torch.inference_mode():
        assert error(our_hift(net)(mel, *noise_of(10)), wanted) < 1e-4


def test_snake_in_place_only_where_told():
    x, scale = torch.randn(1, 4, 1, 7), torch.rand(4)
    before = x.clone()
    u = x * scale[:, None, None]
    assert torch.allclose(snake(x, scale), u + u.sin() ** 2)
    assert torch.equal(x, before)
    assert snake(x).data_ptr() == x.data_ptr()


@pytest.mark.slow
def test_full_size():
    cfg = HiftConfig()
    net = upstream_hift(cfg)
    wanted, _, ours, mel, noise = both((net, our_hift(net, cfg)), 100)
    with torch.inference_mode():
        assert error(ours(mel, *noise), wanted) < 1e-4
