"""A stream's mel stays as it was made, and its wave is the vocoder's of that mel as a whole."""

import pytest
import torch
from flow_pairs import random_flow, tokens, voice
from hift_pairs import error, some_mel
from replay import Replay

from chatterbox_opt.config import tiny
from chatterbox_opt.engine import stream as module
from chatterbox_opt.engine.mel import MelRunner
from chatterbox_opt.engine.noise import RequestNoise
from chatterbox_opt.engine.stream import LOOKAHEAD, MelStream, Stream, WavStream
from chatterbox_opt.engine.wav import SIZES, WavRunner, fade_in
from chatterbox_opt.models.hift import Hift
from chatterbox_opt.options import EngineOptions

CPU = torch.device("cpu")
EXACT = EngineOptions.exact()


def noise(seed: int = 0) -> RequestNoise:
    return RequestNoise(CPU, seed)


@pytest.fixture(scope="module")
def vocoder() -> WavRunner:
    torch.manual_seed(0)
    return WavRunner(Hift(tiny("tts").hift).eval().requires_grad_(False), EXACT)


def whole(runner: WavRunner, stream: WavStream, mel: torch.Tensor) -> torch.Tensor:
    """The wave of all of it at once, from the stream's own randomness."""
    spectrum = runner.hift.spectrum(runner.hift.source(mel[None], stream.phases, stream.normal))
    (wave,) = runner.decode([mel], [spectrum])
    return fade_in(wave)


@pytest.mark.parametrize("cuts", [[], [30], [1, 2, 30, 31, 90], [100, 180], [199]], ids=str)
@torch.inference_mode()
def test_the_wave_is_that_of_the_whole_mel(vocoder, cuts):
    mel = some_mel(200)
    stream = WavStream(vocoder, noise())
    parts = [stream.add(mel[:, a:b], last=b == 200) for a, b in zip([0, *cuts], [*cuts, 200])]
    got = torch.cat(parts)
    assert got.shape == (200 * 480,)
    assert error(got, whole(vocoder, stream, mel)) < 1e-4
    if cuts == [100, 180]:
        assert [len(p) // 480 for p in parts] == [100 - stream.hold, 80, 20 + stream.hold]


@torch.inference_mode()
def test_samples_wait_for_all_that_reaches_them(vocoder):
    """Held back less, the seams would show."""
    mel, stream = some_mel(200), WavStream(vocoder, noise())
    stream.hold = 4
    got = torch.cat([stream.add(mel[:, :90]), stream.add(mel[:, 90:], last=True)])
    assert error(got, whole(vocoder, stream, mel)) > 1e-4


@torch.inference_mode()
def test_captured_windows_serve_a_stream(vocoder, monkeypatch):
    """What a GPU replays: windows of few sizes. However little is new, some of them hold it."""
    captured = WavRunner(vocoder.hift, EXACT)
    captured.captured = Replay()
    captured.warmup()
    monkeypatch.setattr(captured, "_run", run := Counted(captured._run))
    mel, stream = some_mel(200), WavStream(captured, noise())
    got = torch.cat([stream.add(mel[:, a:b], b == 200) for a, b in ((0, 70), (70, 100), (100, 190), (190, 200))])
    assert error(got, whole(vocoder, stream, mel)) < 1e-4
    assert set(run.sizes) <= set(SIZES)


class Counted:
    def __init__(self, run) -> None:
        self.run, self.sizes = run, []

    def __call__(self, size, parts):
        self.sizes.append(size)
        return self.run(size, parts)


@pytest.mark.parametrize("family", ["tts", "turbo"])
@torch.inference_mode()
def test_a_mel_continues_as_the_voices_prompt_is_continued(family):
    runner, ids, prompt = MelRunner(random_flow(family), EXACT), tokens(60), voice()
    stream = MelStream(runner, prompt, noise(3))
    first = stream.add(ids[:30])
    assert first.shape == (80, 2 * (30 - LOOKAHEAD))
    assert torch.equal(first, runner.render([ids[:30]], [prompt], [noise(3)])[0][:, : -2 * LOOKAHEAD])
    assert not stream.add(ids[: 30 - LOOKAHEAD + 2]).numel(), "nothing new is certain"
    n = 30 - LOOKAHEAD
    longer = prompt | {
        "prompt_token": torch.cat([prompt["prompt_token"], ids[None, :n]], 1),
        "prompt_feat": torch.cat([prompt["prompt_feat"], first.mT[None]], 1),
    }
    state = stream.noise.state()
    rest = stream.add(ids, last=True)
    stream.noise.restore(state)
    assert rest.shape == (80, 2 * (60 - n))
    assert torch.equal(rest, runner.render([ids[n:]], [longer], [stream.noise])[0])


@torch.inference_mode()
def test_a_shortened_prompt_is_the_voices_not_the_utterances():
    flow, ids, prompt = random_flow("tts"), tokens(60), voice(50)
    short = EXACT.replace(prompt_seconds=1.0)
    cut = prompt | {"prompt_token": prompt["prompt_token"][:, :25], "prompt_feat": prompt["prompt_feat"][:, :50]}
    waves = []
    for options, given in ((short, prompt), (EXACT, cut)):
        stream = MelStream(MelRunner(flow, options), given, noise())
        waves.append(torch.cat([stream.add(ids[:40]), stream.add(ids, last=True)], 1))
    assert torch.equal(*waves)


@torch.inference_mode()
def test_an_odd_frame_of_the_prompt_is_told_by_nobody():
    """A recording that ends in the middle of a token has a frame more than its tokens."""
    runner, ids, even = MelRunner(random_flow("tts"), EXACT), tokens(60), voice()
    odd = even | {"prompt_feat": torch.cat([even["prompt_feat"], torch.ones(1, 1, 80)], 1)}
    waves = []
    for given in (even, odd):
        stream = MelStream(runner, given, noise())
        waves.append(torch.cat([stream.add(ids[:40]), stream.add(ids, last=True)], 1))
    assert waves[0].shape == (80, 120)
    assert torch.equal(*waves)


@torch.inference_mode()
def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "REMEMBERED", 10)
    runner, ids = MelRunner(random_flow("tts"), EXACT), tokens(80)
    stream = MelStream(runner, voice(), noise())
    parts = [stream.add(ids[:n], last=n == 80) for n in (20, 40, 60, 80)]
    assert sum(p.shape[1] for p in parts) == 160
    assert len(stream.said) == 10
    assert stream.mel.shape == (80, 20)
    assert torch.equal(stream.said, ids[-10:])
    assert torch.equal(stream.mel, torch.cat(parts, 1)[:, -20:])


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_few_tokens_or_none(vocoder, n):
    stream = Stream(MelStream(MelRunner(random_flow("tts"), EXACT), voice(), noise()), WavStream(vocoder, noise()))
    assert stream.hold == 10, "tokens, of 20 frames"
    assert not len(stream.add(tokens(n) if n else torch.zeros(0, dtype=torch.long)))
    wave = stream.add(tokens(n) if n else torch.zeros(0, dtype=torch.long), last=True)
    assert len(wave) == 960 * n
    assert wave.isfinite().all()
    assert not wave[:480].any(), "the first 20 ms are silent"
