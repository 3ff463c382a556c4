"""Arguments of calls: kinds of numbers, forms of voices, and errors."""

import dataclasses
import logging
import sys
from functools import partial

import numpy as np
import pytest
import soundfile
import torch

from chatterbox_opt import (
    EngineOptions,
    OptimizedChatterboxMultilingualTTS,
    OptimizedChatterboxTTS,
    OptimizedChatterboxTurboTTS,
    OptimizedChatterboxVC,
)
from chatterbox_opt.weights import hub
from chatterbox_opt.weights.random_init import write_checkpoint

DOORS = [
    OptimizedChatterboxTTS, OptimizedChatterboxMultilingualTTS, OptimizedChatterboxTurboTTS, OptimizedChatterboxVC,
]
SHORT = dict(max_new_tokens=6)
RATE = 24_000


@pytest.fixture(scope="module")
def model():
    return OptimizedChatterboxTTS.from_random(size="tiny", seed=0)


@pytest.fixture(scope="module")
def turbo():
    return OptimizedChatterboxTurboTTS.from_random(size="tiny", seed=0)


@pytest.fixture(scope="module")
def vc():
    return OptimizedChatterboxVC.from_random(size="tiny", seed=0)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("voice") / "voice.wav"
    t = np.arange(2 * RATE) / RATE
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 180 * t) * (1 + np.sin(2 * np.pi * 3 * t)), RATE)
    return path


@pytest.mark.parametrize(
    "mode", [torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta")], ids=["autocast", "device"]
)
def test_modes_of_the_caller_change_nothing(model, vc, recording, mode):
    """They are of the caller's thread, which may do the work of others, and whose voices are kept for all."""
    calls = [
        lambda: model.generate("Hello.", seed=3, **SHORT),
        lambda: model.generate("Hello. " * 9, seed=3, max_chars=40, takes=2, **SHORT),
        lambda: model.prepare_voice(recording).t3.speaker_emb,
        lambda: vc.generate(recording, seed=3),
        lambda: model.generate_tokens("Hello.", seed=3, **SHORT),
        lambda: model.speak(model.jobs(["Hello."], seeds=3, **SHORT))[0].pieces[0].tokens,
        lambda: OptimizedChatterboxTTS.from_mini().t3.state_dict()["speech_emb.weight"],
    ]
    for call in calls:
        wanted = call()
        model.voices._kept.clear()
        with mode:
            got = call()
        assert torch.equal(got, wanted)


# ---- numbers -------------------------------------------------------------------------------------


def test_seeds_of_every_kind(model, vc, recording):
    tokens = torch.tensor([1, 2, 3])
    calls = [
        lambda seed: model.generate("Hello.", seed=seed, **SHORT),
        lambda seed: model.tokens_to_wav(tokens, seed=seed),
        lambda seed: vc.generate(recording, seed=seed),
    ]
    for call in calls:
        assert torch.equal(call(np.int64(3)), call(3))
        assert torch.equal(call(3 + 2**64), call(3))
        for bad in ("3", 3.0, True):
            with pytest.raises(ValueError, match="seed="):
                call(bad)


@pytest.mark.parametrize("seeds", [range(2), np.array([0, 1]), torch.tensor([0, 1]), (0, 1)])
def test_values_for_a_batch_in_any_sequence(model, seeds):
    got = model.generate_batch(["One.", "Two."], seeds=seeds, cfg_weight=np.array([0.5, 0.0]), **SHORT)
    wanted = model.generate_batch(["One.", "Two."], seeds=[0, 1], cfg_weight=[0.5, 0.0], **SHORT)
    assert all(map(torch.equal, got, wanted))


@pytest.mark.parametrize("bad", [
    dict(n_cfm_timesteps=True), dict(n_cfm_timesteps=0), dict(max_chars=0), dict(max_chars="a"), dict(max_chars=True),
    dict(exaggeration="x"), dict(exaggeration=-3.0), dict(language_id="fr"),
])  # fmt: skip
def test_errors_name_the_argument(model, recording, bad):
    (name,) = bad
    before = model.conds
    speak = model.generate_tokens if name == "language_id" else model.generate
    given = dict(audio_prompt_path=recording) if name == "exaggeration" else {}
    with pytest.raises(ValueError, match=name):
        speak("Hello.", **given, **bad, **SHORT)
    assert model.conds is before


def test_numpy_integers(model):
    numpys = model.generate("Hello.", n_cfm_timesteps=np.int64(2), max_chars=np.int64(200), seed=1, **SHORT)
    assert torch.equal(numpys, model.generate("Hello.", n_cfm_timesteps=2, seed=1, **SHORT))


@pytest.mark.parametrize("batch", [0, -1, 1.5, True, None])
def test_a_warm_up_is_for_a_whole_number(model, vc, batch):
    for warm in (model, vc):
        with pytest.raises(ValueError, match="batch="):
            warm.warmup(batch)


def test_engine_must_be_options():
    with pytest.raises(ValueError, match="engine is dict"):
        OptimizedChatterboxTTS.from_random(engine={"slots": 2})


# ---- voices --------------------------------------------------------------------------------------


def test_a_saved_voice_is_read_once(model, recording, tmp_path):
    path = tmp_path / "ref.pt"
    model.prepare_voice(recording).save(path)
    first, second = model.prepare_voice(path), model.prepare_voice(str(path), exaggeration=0.9)
    assert first.t3.speaker_emb is second.t3.speaker_emb
    model.prepare_voice(recording, exaggeration=0.5).save(path)  # rewritten with the same content
    assert torch.equal(model.tokens_to_wav([1, 2], path, 0), model.tokens_to_wav([1, 2], first, 0))


def test_conversion_takes_a_voice_in_any_form(model, turbo, vc, recording, tmp_path):
    path = tmp_path / "ref.pt"
    voice = model.prepare_voice(recording)
    voice.save(path)
    of_turbo = dataclasses.replace(voice, t3=turbo.conds.t3)  # of which conversion needs the other half
    targets = (recording, path, str(path), voice, of_turbo)
    heard = [vc.generate(recording, target, seed=0) for target in targets]
    assert all(torch.equal(h, heard[0]) for h in heard)


def test_a_voice_must_be_of_this_family(model, turbo):
    for bad in (3, {}, np.zeros(9)):
        with pytest.raises(ValueError, match="voice is"):
            model.generate("Hello.", voice=bad, **SHORT)
    long = torch.ones(1, turbo.config.t3.prompt_tokens, dtype=torch.long)
    turbo.conds.t3.cond_prompt_speech_tokens = long
    if turbo.config.t3.prompt_tokens > model.config.t3.prompt_tokens:
        with pytest.raises(ValueError, match="speech tokens"):
            model.generate("Hello.", voice=turbo.conds, **SHORT)


def test_samples_need_their_rate(model, vc, recording):
    wav, rate = soundfile.read(recording, dtype="float32")
    with pytest.raises(ValueError, match="sample_rate=None"):
        model.generate("Hello.", audio_prompt_path=wav)
    with pytest.raises(ValueError, match="sample_rate=None"):
        vc.generate(recording, wav)
    with pytest.raises(ValueError, match="audio is tuple"):
        model.prepare_voice((wav, rate))
    with pytest.raises(ValueError, match="divide int16"):
        model.prepare_voice(wav * 32_768, sample_rate=rate)


def test_an_open_file_is_read_from_its_start(model, recording):
    with open(recording, "rb") as file:
        first = model.prepare_voice(file)
        model.voices._kept.clear()
        assert torch.equal(model.prepare_voice(file).t3.speaker_emb, first.t3.speaker_emb)
    for _ in range(2):  # kept or not
        with pytest.raises(ValueError, match="states its own rate"):
            model.prepare_voice(recording, sample_rate=8000)
        model.prepare_voice(recording)


# ---- everything else -----------------------------------------------------------------------------


def test_a_watermarker_can_be_set_later(model):
    class Counting:
        heard = 0

        def apply_watermark(self, wav, sample_rate):
            self.heard += 1
            return wav

    silent = OptimizedChatterboxTTS.from_random(enable_watermark=False)
    silent.watermarker = Counting()
    silent.generate("Hello.", seed=0, **SHORT)
    silent.tokens_to_wav([1, 2, 3], seed=0)
    assert silent.watermarker.heard == 2


def test_turbo_names_each_argument_once(turbo, caplog):
    for how in (dict(min_p=0.2), dict(min_p=0.2, cfg_weight=0.5), dict(cfg_weight=0.5)):
        turbo.generate("Hello.", seed=0, **how, **SHORT)
    lines = [r.message for r in caplog.records if "not supported" in r.message]
    assert [line.split(":")[0] for line in lines] == ["min_p", "cfg_weight"]


def test_random_multilingual_spells_chinese(caplog):
    model = OptimizedChatterboxMultilingualTTS.from_random(engine=EngineOptions.exact())
    with caplog.at_level(logging.WARNING):
        ids = model.pipeline.text_ids("你好", "zh")
    assert "Cangjie" not in caplog.text
    assert (ids == 1).sum() <= 2  # of unknown characters


def test_every_piece_has_its_tokens(model, monkeypatch):
    """A piece without sound has no tokens, and keeps its place."""
    release = model.pipeline.tokens.release

    def second_is_silent(gone):
        for slot in gone:
            if slot.utterance.index == 1:
                slot.utterance.tokens.clear()
        release(gone)

    monkeypatch.setattr(model.pipeline.tokens, "release", second_is_silent)
    text = "One sentence is here. Another one is here. And the third one is here."
    (speech,) = model.speak(model.jobs([text], seeds=0, **SHORT), max_chars=30)
    assert len(speech.tokens) == len(speech.stops) == 3
    assert [bool(len(t)) for t in speech.tokens] == [True, False, True]


@pytest.mark.parametrize("packed", [None, "int8"])
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_the_default_dtype_of_the_process_changes_nothing(default, packed, recording, tmp_path):
    """Other libraries set it for a while; tables that are made meanwhile are kept."""
    folder = write_checkpoint(tmp_path / "weights")

    def results():
        for module in [module for name, module in sys.modules.items() if name.startswith("chatterbox_opt.")]:
            for kept in vars(module).values():
                if hasattr(kept, "cache_clear"):
                    kept.cache_clear()
        fresh = OptimizedChatterboxTTS.from_local(folder, "cpu", quantize=packed)
        voice = fresh.prepare_voice(recording)
        chunks = list(fresh.generate_stream("Hello.", voice=voice, seed=3, **SHORT))
        return fresh.options, [
            voice.t3.speaker_emb, voice.gen["prompt_feat"], fresh.generate("Hello.", voice=voice, seed=3, **SHORT),
            torch.cat(chunks, 1),
        ]

    torch.set_default_dtype(default)
    try:
        options, found = results()
    finally:
        torch.set_default_dtype(torch.float32)
    wanted_options, everything = results()
    assert options == wanted_options
    for got, wanted in zip(found, everything):
        assert got.dtype == wanted.dtype == torch.float32
        assert torch.equal(got, wanted)


# ---- loading -------------------------------------------------------------------------------------

WRONG = [
    (dict(slots=64), TypeError, r"engine=EngineOptions\(slots=\.\.\.\)"),
    (dict(quantise="int8"), TypeError, "unknown argument quantise; did you mean quantize?"),
    (dict(speed=2), TypeError, "unknown argument speed; loading takes engine, enable_compilation"),
    (dict(quantize="int3"), ValueError, "quantize='int3'"),
    (dict(engine={}), ValueError, "an EngineOptions is needed"),
    (dict(preset="quick"), ValueError, "preset='quick'"),
    (dict(attention="flash"), ValueError, "needs half precision"),
    (dict(device="cuda:99"), ValueError, "sees 0 CUDA devices"),
]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(("options", "error", "message"), WRONG, ids=lambda case: str(case)[:30])
def test_what_loading_cannot_do_is_said_before_gigabytes_are_fetched_or_read(
    door, options, error, message, monkeypatch, tmp_path
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(hub, "download", lambda *_, **__: pytest.fail("a download was begun"))
    options = {"device": "cpu", **options}
    for load in (door.from_pretrained, partial(door.from_local, tmp_path / "no such folder")):
        with pytest.raises(error, match=message):
            load(**options)


def test_voice_conversion_has_no_speech_weights_to_pack():
    with pytest.raises(TypeError, match="unknown argument cache_packed"):
        OptimizedChatterboxVC.from_pretrained("cpu", cache_packed=True)
