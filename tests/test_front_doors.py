"""Public calls in several threads, with several models and on several devices."""

import dataclasses
import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from threads import in_threads

import chatterbox_opt
from chatterbox_opt import OptimizedChatterboxMultilingualTTS, OptimizedChatterboxTTS, OptimizedChatterboxTurboTTS
from chatterbox_opt.engine.resolve import indexed
from chatterbox_opt.pipeline import Speech

RATE = 24_000
THREADS = 8
DOORS = {
    "tts": OptimizedChatterboxTTS, "mtl": OptimizedChatterboxMultilingualTTS, "turbo": OptimizedChatterboxTurboTTS,
}
LANGUAGE = {"mtl": dict(language_id="en")}


@pytest.fixture(scope="module")
def models():
    return {name: door.from_random(size="tiny", seed=0, enable_watermark=False) for name, door in DOORS.items()}


@pytest.fixture
def model(models, request):
    """A model per family; its own voice is restored."""
    chosen = models[getattr(request, "param", "tts")]
    conds = chosen.conds
    yield chosen
    chosen.conds = conds


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder, t = tmp_path_factory.mktemp("voices"), np.arange(6 * RATE) / RATE
    paths = [folder / f"{k}.wav" for k in range(THREADS)]
    for k, path in enumerate(paths):
        hum = np.sin(2 * np.pi * (110 + 40 * k) * t) * (1.1 + np.sin(2 * np.pi * (2 + k) * t))
        soundfile.write(path, 0.2 * hum + 0.01 * np.random.default_rng(k).standard_normal(len(t)), RATE)
    return paths


@pytest.fixture
def jobs(model, monkeypatch):
    """Collects the jobs given to the pipeline, without speaking them."""
    found = []

    def speak(jobs, **_):
        found.extend(jobs)
        return [Speech(torch.ones(1, 9), [], []) for _ in jobs]

    monkeypatch.setattr(model.pipeline, "speak", speak)
    monkeypatch.setattr(model.pipeline, "stream", lambda job, **_: found.append(job) or SimpleNamespace(begin=list))
    monkeypatch.setattr(model.pipeline, "generate_tokens", lambda job, *_: found.append(job))
    return found


# ---- voices of several threads -------------------------------------------------------------------


class Crowded:
    """A model whose own voice, once set, is not read until every thread has set it."""

    everybody = threading.Barrier(1)

    @property
    def conds(self):
        return self.__dict__.get("conds")

    @conds.setter
    def conds(self, voice):
        self.__dict__["conds"] = voice
        self.everybody.wait(60)


@pytest.mark.parametrize("model", DOORS, indirect=True)
@pytest.mark.parametrize("call", ["generate", "generate_stream", "submit"])
def test_a_thread_speaks_in_the_voice_of_its_own_recording(model, call, jobs, recordings, monkeypatch):
    own = {path.name: model.prepare_voice(path).t3.speaker_emb for path in recordings}
    assert len({tuple(v.view(-1).tolist()) for v in own.values()}) == THREADS
    crowded = type("Crowded", (Crowded, type(model)), {"everybody": threading.Barrier(THREADS)})
    usual = type(model)

    def speak(path):
        getattr(model, call)(path.name, audio_prompt_path=path, **LANGUAGE.get(model.family, {}))

    model.__class__ = crowded
    try:
        in_threads(*(partial(speak, path) for path in recordings))
    finally:
        model.__class__ = usual
    assert sorted(job.text for job in jobs) == sorted(own)
    for job in jobs:
        assert torch.equal(job.voice.t3.speaker_emb, own[job.text]), "another thread's voice"
    assert any(torch.equal(model.conds.t3.speaker_emb, v) for v in own.values()), "one of them became the model's own"


@pytest.mark.parametrize("model", ["turbo"], indirect=True)
def test_turbo_levels_a_recording_or_not_as_the_call_says(model, jobs, recordings):
    for level in (True, False):
        model.generate("Hello.", audio_prompt_path=recordings[0], norm_loudness=level)
        assert model.conds.t3.speaker_emb is jobs[-1].voice.t3.speaker_emb
        assert jobs[-1].voice.t3.speaker_emb is model.prepare_voice(recordings[0], norm_loudness=level).t3.speaker_emb
    assert not torch.equal(jobs[0].voice.t3.speaker_emb, jobs[1].voice.t3.speaker_emb)
    for level in (True, False):
        model.generate("Hello.", voice=recordings[0], norm_loudness=level)
        assert jobs[-1].voice.t3.speaker_emb is model.prepare_voice(recordings[0], norm_loudness=level).t3.speaker_emb


@pytest.mark.parametrize("call", ["generate", "generate_stream", "submit"])
def test_two_voices_for_one_text_are_refused(model, recordings, call):
    how = {"language_id": "en"} if model.config.family == "mtl" else {}
    with pytest.raises(ValueError, match="voice and audio_prompt_path are both given"):
        getattr(model, call)("Hello.", voice=model.conds, audio_prompt_path=recordings[0], **how)


# ---- exaggeration --------------------------------------------------------------------------------


def emotion(job):
    return round(float(job.voice.t3.emotion_adv), 6)


CALLS = {
    "generate": lambda model, voice, **how: model.generate("Hello.", voice=voice, **how),
    "generate_batch": lambda model, voice, **how: model.generate_batch(["Hello."], voices=voice, **how),
    "generate_stream": lambda model, voice, **how: model.generate_stream("Hello.", voice=voice, **how),
    "generate_tokens": lambda model, voice, **how: model.generate_tokens("Hello.", voice=voice, **how),
    "submit": lambda model, voice, **how: model.submit("Hello.", voice=voice, **how),
}


@pytest.mark.parametrize("model", ["tts", "mtl"], indirect=True)
@pytest.mark.parametrize("name", CALLS)
def test_a_voice_keeps_the_exaggeration_it_was_prepared_with(model, name, jobs, recordings, tmp_path):
    how = LANGUAGE.get(model.family, {}) if name != "generate_batch" else {}
    call, voice = CALLS[name], model.prepare_voice(recordings[0], exaggeration=0.9)
    voice.save(tmp_path / "ref.pt")
    for form in (voice, tmp_path / "ref.pt", str(tmp_path / "ref.pt"), model.prepare_voice(tmp_path / "ref.pt")):
        call(model, form, **how)
        assert emotion(jobs.pop()) == 0.9
    call(model, voice, exaggeration=0.5, **how)
    assert emotion(jobs.pop()) == 0.5, "what the call says wins, if it is the default's own number"
    call(model, voice, exaggeration=0.2, **how)
    assert emotion(jobs.pop()) == 0.2
    assert emotion(SimpleNamespace(voice=voice)) == 0.9
    call(model, model.prepare_voice(recordings[0]), **how)
    assert emotion(jobs.pop()) == 0.5


@pytest.mark.parametrize("model", ["tts", "mtl"], indirect=True)
@pytest.mark.parametrize("name", CALLS)
def test_the_models_own_voice_has_the_calls_exaggeration_as_upstream(model, name, jobs, recordings):
    """Upstream writes that of generate(), by default 0.5, into the voice; so every call sounds the same."""
    how = LANGUAGE.get(model.family, {}) if name != "generate_batch" else {}
    model.prepare_conditionals(recordings[0], exaggeration=0.9)
    CALLS[name](model, None, **how)
    CALLS[name](model, None, exaggeration=0.7, **how)
    assert [emotion(job) for job in jobs] == [0.5, 0.7]


def test_a_recording_given_to_a_call_has_the_calls_exaggeration(model, jobs, recordings):
    model.generate("Hello.", audio_prompt_path=recordings[0])
    model.generate("Hello.", audio_prompt_path=recordings[0], exaggeration=0.8)
    model.generate_stream("Hello.", audio_prompt_path=recordings[0], exaggeration=0.3)
    assert [emotion(job) for job in jobs] == [0.5, 0.8, 0.3]


def test_a_voice_of_upstreams_may_have_no_exaggeration(model, jobs):
    voice = dataclasses.replace(model.conds, t3=dataclasses.replace(model.conds.t3, emotion_adv=None))
    model.generate("Hello.", voice=voice)
    assert emotion(jobs.pop()) == 0.5


# ---- devices -------------------------------------------------------------------------------------


def test_a_device_without_an_index_is_the_current_one_for_good(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    kept = indexed("cuda")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 5)
    assert kept == torch.device("cuda:3")
    assert indexed(kept) == kept
    assert indexed(torch.device("cuda")) == torch.device("cuda:5")
    assert (indexed("cuda:1"), indexed("cpu")) == (torch.device("cuda:1"), torch.device("cpu"))


@pytest.mark.parametrize("door", ["OptimizedChatterboxTTS", "OptimizedChatterboxTurboTTS", "OptimizedChatterboxVC"])
def test_a_model_stays_on_the_device_it_was_made_on(door, monkeypatch):
    """Whatever device is current in the calling threads: everything inside gets the device with its index."""
    places = []

    def part(*args):
        places.extend(a for a in args if isinstance(a, torch.device))
        return SimpleNamespace(device=places[-1])

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    module = "vc" if door.endswith("VC") else "base"
    for name in ("Pipeline", "VoicePreparer", "Watermarker"):
        monkeypatch.setattr(f"chatterbox_opt.{module}.{name}", part)
    parts = [None] if module == "vc" else [None] * 4
    model = getattr(chatterbox_opt, door)(*parts, "cuda")
    assert places == [torch.device("cuda:1")] * 3
    assert model.device == "cuda"


# ---- seeds ---------------------------------------------------------------------------------------


def test_two_long_texts_with_neighbouring_seeds_share_no_noise(model):
    found = [noise.state() for seed in range(20) for noise in model.pipeline.noises(seed, 20, alone=False)]
    assert len({tuple(state.tolist()) for state in found}) == 400
