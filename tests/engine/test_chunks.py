"""A finished mel frame never changes, the wave is that of the whole mel, and a single chunk equals the whole."""

from itertools import islice

import pytest
import torch
from flow_pairs import random_flow, tokens, voice
from hift_pairs import error, some_mel
from replay import Replay

from chatterbox_opt.config import tiny
from chatterbox_opt.engine import chunks as module
from chatterbox_opt.engine import wav
from chatterbox_opt.engine.chunks import LONGEST, LOOKAHEAD, MelState, Sound, WaveState, chunk_sizes
from chatterbox_opt.engine.mel import MelJob, MelRunner
from chatterbox_opt.engine.noise import RequestNoise
from chatterbox_opt.engine.wav import SIZES, WavRunner, fade_in
from chatterbox_opt.models.hift import Hift
from chatterbox_opt.options import EngineOptions

pytestmark = pytest.mark.kernels
CPU = torch.device("cpu")
EXACT = EngineOptions.exact()


def noise(seed: int = 0) -> RequestNoise:
    return RequestNoise(CPU, seed)


@pytest.fixture(scope="module")
def vocoder() -> WavRunner:
    torch.manual_seed(0)
    return WavRunner(Hift(tiny("tts").hift).eval().requires_grad_(False), EXACT)


def continue_mel(runner: MelRunner, state: MelState, ids: torch.Tensor, last: bool = False) -> torch.Tensor:
    """Takes all tokens so far; returns the mel that continues the earlier ones."""
    job = state.job(ids, last)
    return state.mel[:, :0] if job is None else state.accept(*runner.render([job], state.steps))


def continue_wave(state: WaveState, mel: torch.Tensor, last: bool = False) -> torch.Tensor:
    window = state.window(mel, last)
    return mel.new_zeros(0) if window is None else state.accept(*state.runner.decode(*([part] for part in window)))


def continue_sound(runner: MelRunner, sound: Sound, ids: torch.Tensor, last: bool = False) -> torch.Tensor:
    job = sound.begin(ids, last)
    window = sound.window(None if job is None else runner.render([job], sound.mel.steps)[0])
    wave = None if window is None else sound.wave.runner.decode(*([part] for part in window))[0]
    return sound.accept(wave)


def sound_of(vocoder: WavRunner, given: RequestNoise, **how) -> Sound:
    return Sound(MelState(voice(), given), WaveState(vocoder, given), **how)


def whole_wave(runner: WavRunner, state: WaveState, mel: torch.Tensor) -> torch.Tensor:
    """Returns the wave of the whole mel, from the stream's own noise."""
    (wave,) = runner.decode([mel], [runner.spectrum(mel, state.phases, state.normal)])
    return fade_in(wave)


# ---- sizes ---------------------------------------------------------------------------------------


def test_chunks_grow_to_a_limit():
    first, *sizes = islice(chunk_sizes(25, 10), 8)
    assert first == 35
    assert sizes == sorted(sizes)
    assert sizes[0] == 38
    assert sizes[-1] == sizes[-2] == LONGEST
    assert list(islice(chunk_sizes(200, 10), 3)) == [210, 200, 200]
    assert next(islice(chunk_sizes(25, 10), 5000, None)) == LONGEST, "hours of speech are chunks too"


# ---- the wave ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [[], [30], [1, 2, 30, 31, 90], [100, 180], [199]], ids=str)
@torch.inference_mode()
def test_the_wave_is_that_of_the_whole_mel(vocoder, cuts):
    mel = some_mel(200)
    state = WaveState(vocoder, noise())
    parts = [continue_wave(state, mel[:, a:b], last=b == 200) for a, b in zip([0, *cuts], [*cuts, 200])]
    got = torch.cat(parts)
    assert got.shape == (200 * 480,)
    assert error(got, whole_wave(vocoder, state, mel)) < 1e-4
    if cuts == [100, 180]:
        assert [len(p) // 480 for p in parts] == [100 - state.hold, 80, 20 + state.hold]


@torch.inference_mode()
def test_fewer_held_samples_would_leave_seams(vocoder):
    """If less were held back, seams would be heard."""
    mel, state = some_mel(200), WaveState(vocoder, noise())
    state.hold = 4
    got = torch.cat([continue_wave(state, mel[:, :90]), continue_wave(state, mel[:, 90:], last=True)])
    assert error(got, whole_wave(vocoder, state, mel)) > 1e-4


@torch.inference_mode()
def test_captured_windows_serve_a_stream(vocoder, monkeypatch):
    """A GPU replays windows of a few sizes, of which one fits however little is new."""
    monkeypatch.setattr(wav, "SIZES", SIZES[2:])  # a warm-up of all takes long
    captured = WavRunner(vocoder.hift, EXACT)
    captured.captured = Replay()
    captured.warmup()
    monkeypatch.setattr(captured, "_run", run := RecordsSizes(captured._run))
    mel, state = some_mel(200), WaveState(captured, noise())
    cuts = (0, 70), (70, 100), (100, 190), (190, 200)
    got = torch.cat([continue_wave(state, mel[:, a:b], b == 200) for a, b in cuts])
    assert error(got, whole_wave(vocoder, state, mel)) < 1e-4
    assert set(run.sizes) <= set(wav.SIZES)


class RecordsSizes:
    def __init__(self, run) -> None:
        self.run, self.sizes = run, []

    def __call__(self, size, parts):
        self.sizes.append(size)
        return self.run(size, parts)


# ---- the mel -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["tts", "turbo"])
@torch.inference_mode()
def test_a_chunk_continues_the_mel_as_a_prompt(family):
    runner, ids, prompt = MelRunner(random_flow(family), EXACT), tokens(60), voice()
    state = MelState(prompt, noise(3))
    first = continue_mel(runner, state, ids[:30])
    assert first.shape == (80, 2 * (30 - LOOKAHEAD))
    (plain,) = runner.render([MelJob(ids[:30], prompt, noise(3))])
    assert torch.equal(first, plain[:, : -2 * LOOKAHEAD])
    assert not continue_mel(runner, state, ids[: 30 - LOOKAHEAD + 2]).numel(), "nothing new is certain"
    n = 30 - LOOKAHEAD
    longer = prompt | {
        "prompt_token": torch.cat([prompt["prompt_token"], ids[None, :n]], 1),
        "prompt_feat": torch.cat([prompt["prompt_feat"], first.mT[None]], 1),
    }
    before = state.noise.state()
    rest = continue_mel(runner, state, ids, last=True)
    state.noise.restore(before)
    assert rest.shape == (80, 2 * (60 - n))
    assert torch.equal(rest, runner.render([MelJob(ids[n:], longer, state.noise)])[0])


@torch.inference_mode()
def test_prompt_seconds_shortens_only_the_voice():
    flow, ids, prompt = random_flow("tts"), tokens(60), voice(50)
    short = EXACT.replace(prompt_seconds=1.0)
    cut = prompt | {"prompt_token": prompt["prompt_token"][:, :25], "prompt_feat": prompt["prompt_feat"][:, :50]}
    mels = [in_two(MelRunner(flow, options), ids, given) for options, given in ((short, prompt), (EXACT, cut))]
    assert torch.equal(*mels)


def in_two(runner: MelRunner, ids: torch.Tensor, given: dict) -> torch.Tensor:
    state = MelState(given, noise())
    return torch.cat([continue_mel(runner, state, ids[:40]), continue_mel(runner, state, ids, last=True)], 1)


@torch.inference_mode()
def test_an_odd_frame_of_the_prompt_changes_nothing():
    """A recording that ends in the middle of a token has one frame more than its tokens."""
    runner, ids, even = MelRunner(random_flow("tts"), EXACT), tokens(60), voice()
    odd = even | {"prompt_feat": torch.cat([even["prompt_feat"], torch.ones(1, 1, 80)], 1)}
    mels = [in_two(runner, ids, given) for given in (even, odd)]
    assert mels[0].shape == (80, 120)
    assert torch.equal(*mels)


@torch.inference_mode()
def test_kept_tokens_are_bounded(monkeypatch):
    monkeypatch.setattr(module, "REMEMBERED", 10)
    runner, ids = MelRunner(random_flow("tts"), EXACT), tokens(80)
    state = MelState(voice(), noise())
    parts = [continue_mel(runner, state, ids[:n]) for n in (20, 40, 60, 80)]
    made = 80 - LOOKAHEAD
    assert torch.equal(state.said, ids[made - 10 : made])
    assert torch.equal(state.mel, torch.cat(parts, 1)[:, -20:])
    parts.append(continue_mel(runner, state, ids, last=True))
    assert sum(p.shape[1] for p in parts) == 160
    assert state.mel.shape == (80, 20)


# ---- both ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["tts", "turbo"])
@torch.inference_mode()
def test_one_chunk_is_the_utterance_rendered_whole(vocoder, family):
    """To the bit, and with as many draws. An odd frame of the prompt is kept, as upstream does."""
    runner, ids, given = MelRunner(random_flow(family), EXACT), tokens(30), noise(4)
    odd = voice() | {"prompt_feat": torch.cat([voice()["prompt_feat"], torch.ones(1, 1, 80)], 1)}
    sound = Sound(MelState(odd, given), WaveState(vocoder, given))
    got = continue_sound(runner, sound, ids, last=True)
    other = noise(4)
    (wanted,) = vocoder.render(runner.render([MelJob(ids, odd, other)]), [other])
    assert torch.equal(got, wanted)
    assert torch.equal(given.normal((3,)), other.normal((3,)))


@pytest.mark.parametrize("n", [0, 1, 2, 5])
@torch.inference_mode()
def test_few_tokens_or_none(vocoder, n):
    assert vocoder.hold_tokens == 10, "tokens, of 20 frames"
    runner, sound = MelRunner(random_flow("tts"), EXACT), sound_of(vocoder, noise())
    few = tokens(n) if n else torch.zeros(0, dtype=torch.long)
    assert not len(continue_sound(runner, sound, few))
    wave = continue_sound(runner, sound, few, last=True)
    assert len(wave) == 960 * n
    assert wave.isfinite().all()
    assert not wave[:480].any(), "the first 20 ms are silent"


@pytest.mark.parametrize("cuts", [[], [40], [30, 50]], ids=str)
@torch.inference_mode()
def test_only_the_last_token_is_dropped(vocoder, cuts):
    runner, ids = MelRunner(random_flow("tts"), EXACT), tokens(60)
    waves = []
    for drop in (False, True):
        sound = sound_of(vocoder, noise(), drop_last_token=drop)
        waves.append(torch.cat([continue_sound(runner, sound, ids[:n], last=n == 60) for n in (*cuts, 60)]))
    assert len(waves[0]) == 960 * 60
    assert torch.equal(waves[1], waves[0][:-960])


@torch.inference_mode()
def test_a_single_token_is_not_dropped(vocoder):
    sound = sound_of(vocoder, noise(), drop_last_token=True)
    assert len(continue_sound(MelRunner(random_flow("tts"), EXACT), sound, tokens(1), last=True)) == 960
