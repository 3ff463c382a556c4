"""Windows, batches and noise of the vocoder: each wave equals that of its whole mel alone."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from hift_pairs import error, our_hift, some_mel, upstream_hift
from replay import Replay, crossings, no_gpu
from threads import in_threads

from chatterbox_opt.engine import wav
from chatterbox_opt.engine.graphs import Captured, bucket
from chatterbox_opt.engine.kernels import toom
from chatterbox_opt.engine.noise import RequestNoise
from chatterbox_opt.engine.wav import ROWS, SIZES, WavRunner, fade_in, windows
from chatterbox_opt.models.hift import VOCODER_REFERENCE, Conv, Hift
from chatterbox_opt.options import EngineOptions

pytestmark = pytest.mark.kernels
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def net():
    return upstream_hift()


def runner(net, **changes) -> WavRunner:
    return WavRunner(our_hift(net), EngineOptions.exact(**changes))


def seeds(*numbers: int) -> list[RequestNoise]:
    return [RequestNoise(CPU, n) for n in numbers]


@pytest.mark.parametrize("frames", [1, 2, 50])
def test_same_as_upstream_to_the_fade_and_the_generator(net, frames):
    mel = some_mel(frames)
    torch.manual_seed(11)
    wanted, _ = net.inference(mel[None])
    fade = torch.zeros(960)  # as S3Token2Wav has it
    fade[480:] = (torch.cos(torch.linspace(torch.pi, 0, 480)) + 1) / 2
    n = min(960, wanted.shape[1])
    wanted = torch.cat([wanted[:, :n] * fade[:n], wanted[:, n:]], 1)
    after = torch.rand(4)
    torch.manual_seed(11)
    borrowed = RequestNoise(CPU, None)
    (got,) = runner(net).render([mel], [borrowed])
    borrowed.give_back()
    assert error(got, wanted[0]) < 1e-4 if frames > 1 else got.abs().max() == 0  # 20 ms are all silence
    assert torch.equal(torch.rand(4), after), "the next draw must be upstream's next draw"
    (again,) = runner(net).render([mel], seeds(11))
    assert torch.equal(again, got)


def test_windows_equal_the_whole(net):
    mel = some_mel(420)
    (whole,) = runner(net).render([mel], seeds(1))
    chunked = runner(net, wav_chunk=100)
    assert chunked._size(420) <= 100
    (got,) = chunked.render([mel], seeds(1))
    assert error(got, whole) < 1e-4
    other = runner(net, wav_chunk=100)
    other.reach = 6  # too little: the seams must show
    assert error(other.render([mel], seeds(1))[0], whole) > 1e-4


def test_a_captured_window_takes_nothing_from_the_host(net):
    """Copies from the host would end the capture."""
    cfg = our_hift(net).cfg
    with no_gpu():
        fake, mel, spectrum = Hift(cfg), torch.zeros(1, 80, 9), torch.zeros(1, 9 * 120 + 1, 18)
        assert crossings(lambda: fake.decode(mel, spectrum)) == []
        assert crossings(lambda: fake.decode(mel, spectrum) * torch.zeros(9 * 480, device="cpu").to("cuda"))


def test_a_batch_of_windows_is_no_larger_than_what_memory_allows(net):
    made = runner(net, wav_chunk=2000)
    for captured, device, many in ((False, "cpu", False), (True, "cpu", True), (False, "cuda", True)):
        made.device = torch.device(device)
        made.captured = Replay() if captured else Captured(None, CPU)
        for size, most in ((512, 2), (256, 4), (128, 8), (64, 8), (1500, 1), (2500, 1)):
            counts = [len(batch) for batch in made._batches(size, [None] * 9)]
            assert max(counts) == (most if many else 1)
            assert sum(counts) == 9
            assert all(n == 1 or made._fits(bucket(n), size) for n in counts)


def test_windows_are_captured_at_their_first_use_or_ahead_of_it(net, monkeypatch):
    """Either way the same few windows, each once."""
    monkeypatch.setattr(wav, "SIZES", SIZES[1:])
    mels = [some_mel(t, seed=t) for t in (64, 203, 600)]
    lazy, ready = runner(net, wav_chunk=2000), runner(net, wav_chunk=2000)
    for made in (lazy, ready):
        made.captured = Replay()
    ready.warmup(4)
    known = set(ready.captured.keys)
    assert known == {(rows, size) for rows in ROWS for size in wav.SIZES if rows * size <= 2000}
    for a, b in zip(lazy.render(mels, seeds(0, 1, 2)), ready.render(mels, seeds(0, 1, 2))):
        assert torch.equal(a, b)
    assert set(ready.captured.keys) == known
    once = list(lazy.captured.keys)
    assert once
    assert set(once) < known
    lazy.render(mels, seeds(0, 1, 2))
    assert lazy.captured.keys == once


def test_threads_can_decode_at_once(net, monkeypatch):
    """As an engine's workers do on a CPU: threads share no buffers."""
    monkeypatch.setattr(toom, "FEWEST", (8, 7))
    made, mels = runner(net, short_convs=True), [some_mel(t, seed=t) for t in (128, 128, 256, 256)]
    wanted = [made.render([mel], seeds(i))[0] for i, mel in enumerate(mels)]
    got = in_threads(*(partial(made.render, [mel], seeds(i)) for i, mel in enumerate(mels)))
    assert all(error(a, b) < 1e-5 for (a,), b in zip(got, wanted))


SWITCHES = """
import torch
from chatterbox_opt.engine.wav import full_float32

def read(switch):
    try:
        return switch()
    except RuntimeError:
        return "refused"

matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
{setting}
switches = [
    lambda: matmul.fp32_precision, lambda: matmul.allow_tf32, lambda: cudnn.conv.fp32_precision,
    lambda: cudnn.allow_tf32, torch.get_float32_matmul_precision,
]
before = list(map(read, switches))
with full_float32(torch.device("cuda")):
    assert matmul.fp32_precision == cudnn.conv.fp32_precision == "ieee"
assert list(map(read, switches)) == before, (before, list(map(read, switches)))
"""


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9 has one kind of switch")
@pytest.mark.parametrize("setting", [
    "", "torch.backends.cuda.matmul.fp32_precision = 'tf32'", "torch.set_float32_matmul_precision('medium')",
])  # fmt: skip
def test_tf32_is_put_back_whichever_switch_the_program_uses(setting):
    """And those it does not use can be read as before: torch refuses to read some mixtures."""
    done = subprocess.run([sys.executable, "-c", SWITCHES.format(setting=setting)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("warm", [False, True])
def test_a_row_of_a_batch_equals_the_row_alone(net, captured, warm, monkeypatch):
    monkeypatch.setattr(wav, "SIZES", SIZES[2:])  # a warm-up of all takes long
    lengths = [2, 30, 64, 100, 203, 100]
    mels = [some_mel(t, seed=t) for t in lengths]
    batch = runner(net)
    if captured:
        batch.captured = Replay()
    if warm:
        batch.warmup(4)
    got = batch.render(mels, seeds(*range(6)))
    for i, mel in enumerate(mels):
        (alone,) = runner(net).render([mel], seeds(i))
        assert got[i].shape == (480 * lengths[i],)
        assert (got[i] - alone).abs().max() <= 1e-5 * alone.abs().max()
    if captured:
        assert batch.captured.keys
        assert all(rows in ROWS and size in SIZES for rows, size in batch.captured.keys)


@pytest.mark.parametrize("size", [100, 128, 512])
@pytest.mark.parametrize("reach", [3, 15])
def test_windows_cover_everything_once(size, reach):
    for total in [*range(1, 700, 7), 5000]:
        plan = windows(0, total, size, reach)
        assert [w.first for w in plan] == [0, *[w.last for w in plan[:-1]]]
        assert plan[-1].last == total
        for w in plan:
            assert w.size == min(size, total)
            assert w.start >= 0
            assert w.start + w.size <= total
            assert w.first == 0 or w.first - w.start >= reach
            assert w.last == total or w.start + w.size - w.last >= reach


def test_fade_of_any_length():
    for n in (0, 1, 480, 700, 2000):
        wave = fade_in(torch.ones(n))
        assert len(wave) == n
        assert not wave[:480].any()
        assert (wave[960:] == 1).all()
        assert (wave[480:960].diff() >= 0).all()


def test_bad_mels_are_named(net):
    run = runner(net)
    with pytest.raises(ValueError, match=r"mel 1 has shape .*at least one frame"):
        run.render([some_mel(4), some_mel(4)[:, :0]], seeds(0, 1))
    with pytest.raises(ValueError, match="shape"):
        run.render([some_mel(4)[None]], seeds(0))
    assert run.render([], []) == []
    assert len(run.render([some_mel(2)], seeds(0))[0]) == 960, "still usable"


def test_half_precision_keeps_fundamentals_and_transforms_whole(net):
    mel = some_mel(60)
    (exact,) = runner(net).render([mel], seeds(1))
    half = runner(net, s3gen_dtype="bfloat16")
    assert half.hift.conv_pre.weight.dtype == torch.bfloat16
    kept = [half.hift.f0_predictor, half.hift.m_source, half.hift.conv_post]
    assert all(p.dtype == torch.float32 for part in kept for p in part.parameters())
    (got,) = half.render([mel], seeds(1))
    assert got.dtype == torch.float32
    noise = (got - exact).pow(2).mean() / exact.pow(2).mean()
    assert noise < 10**-2.5, f"{-10 * noise.log10():.1f} dB"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_padding_does_not_change_the_wave(net, dtype):
    """A wave ends as if nothing followed its mel, in as few sizes as oneDNN prepares operations for."""
    vocoder = runner(net, s3gen_dtype=str(dtype).removeprefix("torch."))
    assert vocoder.grain == wav.GRAIN == 32
    sizes = set()
    hook = vocoder.hift.conv_pre.register_forward_hook(lambda conv, given, out: sizes.add(out.shape[-1]))
    for frames in (1, 30, 33, 64):
        mel, spectrum = some_mel(frames)[None], torch.randn(1, 120 * frames + 1, 18)
        got = vocoder._decode_padded(mel, spectrum)
        assert sizes == {32 if frames <= 32 else 64}
        wanted = vocoder.hift.decode(mel, spectrum)
        assert got.shape == wanted.shape
        assert error(got, wanted) < (1e-5 if dtype == torch.float32 else 0.03)
        sizes.clear()
    hook.remove()


@pytest.mark.parametrize("taps", [1, 3, 5, 7, 9, 11])
@pytest.mark.parametrize("dilation", [1, 3, 5])
@torch.inference_mode()
def test_convolution_with_fewer_products(taps, dilation, monkeypatch):
    monkeypatch.setattr(toom, "TILE", 16 * 90)  # several tiles, the last one partly filled
    plain = Conv(16, 24, taps, dilation).to(memory_format=torch.channels_last)
    fast = toom.ToomConv(plain, toom.Workspace())
    for time in (1, 2, 33, 200):
        x = torch.randn(2, 16, 1, time).contiguous(memory_format=torch.channels_last)
        got = fast(x)
        assert got.is_contiguous(memory_format=torch.channels_last)
        assert error(got, plain(x)) < 1e-5


def test_vocoder_with_fewer_products(net, monkeypatch):
    monkeypatch.setattr(toom, "FEWEST", (8, 7))
    mel = some_mel(60)
    (plain,) = runner(net).render([mel], seeds(1))
    quick = runner(net, short_convs=True)
    assert len(quick.operations.convolve.fast) > 20
    assert error(quick.render([mel], seeds(1))[0], plain) < 1e-5
    half = runner(net, short_convs=True, s3gen_dtype="bfloat16")
    assert half.operations == VOCODER_REFERENCE


@pytest.mark.gpu
def test_captured_equals_eager(net):
    mels = [some_mel(t, seed=t).cuda() for t in (2, 70, 300)]
    device = torch.device("cuda")

    def render(**changes):
        run = WavRunner(our_hift(net).cuda(), EngineOptions.exact(**changes))
        run.warmup(2)
        return run.render(mels, [RequestNoise(device, i) for i in range(3)])

    plain = render()
    for how in (dict(compile="cudagraph"), dict(compile="cudagraph", kernels=True), dict(kernels=True)):
        for a, b in zip(plain, render(**how)):
            assert (a - b).abs().max() <= 1e-4 * a.abs().max()
