"""Voices that clients upload: stored whole or not at all, found again, deleted while in use."""

import errno
import io
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import soundfile
from serving import load_mini, load_tiny, ready, recording, running, uploaded
from threads import in_threads

from chatterbox_opt.serve.errors import ApiError
from chatterbox_opt.serve.voice_names import check_name, voice_id
from chatterbox_opt.serve.voices import VoiceStore
from chatterbox_opt.text.pronounce import Pronunciations


def upload(server, name, sound=None, **more):
    files = {"audio_sample": ("../../x.wav", recording() if sound is None else sound, "audio/wav")}
    return httpx.post(f"{server.url}/v1/audio/voices", data={"name": name, **more}, files=files, timeout=60)


def speak(server, voice, seed=1, text="Hello."):
    body = {"input": text, "voice": voice, "response_format": "pcm", "seed": seed}
    return httpx.post(f"{server.url}/v1/audio/speech", json=body, timeout=60)


def folder(server):
    return server.service.settings.voices_dir


def names(server):
    return [voice["name"] for voice in httpx.get(f"{server.url}/v1/audio/voices").json()["voices"]]


def test_from_upload_to_deletion(tiny):
    made = upload(tiny, "Zoë Müller", consent="yes")
    assert made.status_code == 200
    assert made.json()["id"] == voice_id("Zoë Müller", "llama")
    assert "Zoë Müller" in names(tiny)
    listed = httpx.get(f"{tiny.url}/v1/audio/voices").json()
    assert listed["data"] == listed["voices"]
    assert {"id", "name", "value", "label"} <= set(listed["data"][0])
    sound = speak(tiny, "zoë müller")
    assert sound.status_code == 200
    assert speak(tiny, {"id": made.json()["id"]}).content == sound.content
    assert speak(tiny, "default").content != sound.content
    assert upload(tiny, "zoë MÜLLER").status_code == 409
    gone = httpx.delete(f"{tiny.url}/v1/audio/voices/{made.json()['id']}")
    assert gone.json()["deleted"] is True
    assert "Zoë Müller" not in names(tiny)
    assert speak(tiny, "Zoë Müller").status_code == 400
    assert httpx.delete(f"{tiny.url}/v1/audio/voices/{made.json()['id']}").status_code == 404
    assert not [p for p in folder(tiny).iterdir() if voice_id("Zoë Müller", "llama") in p.name]


def test_a_served_voice_equals_the_librarys(tiny, tmp_path):
    from chatterbox_opt.audio.io import pcm16

    sound = recording(seed=5)
    assert upload(tiny, "five", sound).status_code == 200
    path = tmp_path / "ref.wav"
    path.write_bytes(sound)
    expected = tiny.model.generate_stream("Hello.", voice=tiny.model.prepare_voice(path), seed=1)
    assert speak(tiny, "five").content == b"".join(map(pcm16, expected))


def test_respellings_of_a_voice_hold_however_it_is_named(cloning, tmp_path, monkeypatch):
    own = {name: Pronunciations({"hello": f"of {name}"}) for name in ("anna", "BOB", "echo")}
    given = []

    def submit(text, **how):
        given.append(how["pronounce"](text))
        raise ValueError("that was all")

    monkeypatch.setattr(cloning, "submit", submit)
    monkeypatch.setattr(cloning, "close", lambda: None)  # with the server
    with running(tmp_path, lambda: cloning, pronounce=Pronunciations({"hello": "general"}, voices=own)) as server:
        ready(server)
        for name in ("Anna", "Bob"):
            assert upload(server, name).status_code == 200
        for voice in ("Anna", "anna", voice_id("Anna", "llama"), {"id": voice_id("Anna", "llama")}, "bob", "Echo"):
            assert "that was all" in speak(server, voice, text="hello").text
    assert given == ["of anna"] * 4 + ["of BOB", "of echo"]


def test_a_voice_is_found_however_its_name_is_written(tiny):
    made = upload(tiny, "Zoë").json()
    try:
        for name in ("Zoë", "ZOË", "zoe\u0308", made["id"]):
            found = httpx.get(f"{tiny.url}/v1/audio/voices/{name}")
            assert (found.status_code, found.json().get("id")) == (200, made["id"])
        assert httpx.get(f"{tiny.url}/v1/audio/voices/Default").status_code == 200
        assert httpx.get(f"{tiny.url}/v1/audio/voices/Zo").status_code == 404
    finally:
        httpx.delete(f"{tiny.url}/v1/audio/voices/Zoë")


def test_openais_names_can_be_taken(tiny):
    before = speak(tiny, "echo").content
    assert upload(tiny, "echo").status_code == 200
    assert names(tiny).count("echo") == 1
    assert speak(tiny, "echo").content != before
    httpx.delete(f"{tiny.url}/v1/audio/voices/echo")
    assert speak(tiny, "echo").content == before


@pytest.mark.parametrize("name", ["", " ", "a/b", "..\\x", "x" * 65, "a\nb", "a\x00b", "default", "voice_" + "0" * 16])
def test_names_that_are_refused(name):
    with pytest.raises(ApiError) as caught:
        check_name(name)
    assert caught.value.param == "name"


@pytest.mark.parametrize(
    "sound",
    [b"", b"RIFF", b"x" * 5000, recording()[:30], recording(0.1), recording(601.0, kind="FLAC"), recording(level=1e30)],
    ids=["empty", "cut", "no sound", "header alone", "too short", "too long", "too loud"],
)
def test_recordings_that_are_refused(tiny, sound):
    before = set(folder(tiny).iterdir()) if folder(tiny).is_dir() else set()
    answer = upload(tiny, "broken", sound)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "audio_sample"
    message = answer.json()["error"]["message"]
    assert message.startswith("the recording")
    assert "object at" not in message
    after = set(folder(tiny).iterdir()) if folder(tiny).is_dir() else set()
    assert before == after


def test_a_small_file_of_endless_sound_is_not_decoded(tiny):
    file = io.BytesIO()
    soundfile.write(file, np.zeros((96_000 * 100, 8), np.int16), 96_000, format="FLAC")
    assert len(file.getvalue()) < 1 << 20
    answer = upload(tiny, "bomb", file.getvalue())
    assert answer.status_code == 400
    assert "samples" in answer.json()["error"]["message"]


def test_a_rate_that_would_take_gigabytes_to_resample_is_refused():
    from chatterbox_opt.serve.recordings import MAX_RATE, check_recording

    def at(rate: int) -> io.BytesIO:
        file = io.BytesIO()
        soundfile.write(file, np.zeros(1000), rate, format="WAV")
        file.seek(0)
        return file

    assert check_recording(at(MAX_RATE), "file") > 0
    with pytest.raises(ApiError, match=f"{MAX_RATE} Hz") as caught:
        check_recording(at(MAX_RATE + 1), "file")
    assert (caught.value.code, caught.value.param) == ("invalid_audio", "file")


def test_malformed_forms(tiny):
    where = f"{tiny.url}/v1/audio/voices"
    boundary = {"content-type": "multipart/form-data; boundary=x"}
    for how in (
        dict(data={"name": "a"}), dict(json={"name": "a"}), dict(content=b"--x\r\nnothing", headers=boundary),
        dict(content=b"", headers={"content-type": "multipart/form-data"}),
        dict(data={"name": "a", "colour": "red"}, files={"audio_sample": ("a", recording())}),
        dict(data={"name": "a", "audio_sample": "a text"}, files={"x": ("a", b"")}),
    ):
        answer = httpx.post(where, **how)
        assert answer.status_code == 400, how
        assert answer.json()["error"]["message"]


def test_mini_refuses_to_clone(mini):
    answer = upload(mini, "somebody")
    assert answer.status_code == 400
    assert "own voice only" in answer.json()["error"]["message"]
    assert "somebody" not in names(mini)


def test_a_full_disk(tiny, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    answer = upload(tiny, "full")
    assert answer.status_code == 507
    assert answer.headers["x-should-retry"] == "false"
    assert "full" not in names(tiny)
    assert not list(folder(tiny).glob("*.part"))
    monkeypatch.undo()
    assert upload(tiny, "full").status_code == 200


def test_a_failed_deletion_is_reported(tiny, monkeypatch):
    assert upload(tiny, "kept").status_code == 200

    def refuse(*_, **how):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    answer = httpx.delete(f"{tiny.url}/v1/audio/voices/kept")
    assert answer.status_code == 507
    assert "kept" in answer.json()["error"]["message"]
    assert "kept" in names(tiny)
    monkeypatch.undo()
    assert httpx.delete(f"{tiny.url}/v1/audio/voices/kept").status_code == 200
    assert "kept" not in names(tiny)


def test_a_voice_deleted_while_it_speaks(tiny):
    assert upload(tiny, "brief").status_code == 200
    body = {"input": "Hello there, all of you. " * 4, "voice": "brief", "response_format": "pcm", "seed": 1}
    body |= {"max_new_tokens": 100, "max_chars": 30, "n_cfm_timesteps": 1}  # 16 s
    alone = httpx.post(f"{tiny.url}/v1/audio/speech", json=body, timeout=60).content
    with httpx.stream("POST", f"{tiny.url}/v1/audio/speech", json=body, timeout=60) as answer:
        parts = answer.iter_raw()
        first = next(parts)
        assert tiny.model.stats()["calls"] == 1
        assert httpx.delete(f"{tiny.url}/v1/audio/voices/brief").status_code == 200
        assert first + b"".join(parts) == alone


def test_voices_survive_a_restart_and_unfinished_files_do_not(tmp_path):
    with running(tmp_path, load_tiny, model_id="english") as server:
        ready(server)
        assert upload(server, "Anna").status_code == 200
        sound = speak(server, "Anna").content
    half = tmp_path / f"{voice_id('Half', 'llama')}.pt.part"
    half.write_bytes(b"half")
    os.utime(half, (0, 0))
    (tmp_path / f"{voice_id('Alone', 'llama')}.json").write_text('{"name": "Alone", "kind": "llama"}')
    (tmp_path / "voice_strange.json").write_text("[]")
    (tmp_path / f"{voice_id('Damaged', 'llama')}.json").write_text('{"name": "Damaged", "kind": "llama"}')
    (tmp_path / f"{voice_id('Damaged', 'llama')}.pt").write_bytes(b"not a voice")
    with running(tmp_path, load_tiny, model_id="english", max_voices=2) as server:
        ready(server)
        assert {"Anna", "Damaged"} <= set(names(server))
        assert not {"Half", "Alone"} & set(names(server))
        assert speak(server, "Anna").content == sound
        assert speak(server, "Damaged").status_code == 400
        assert not list(tmp_path.glob("*.part"))
        assert upload(server, "Third").json()["error"]["code"] == "too_many_voices"
    with running(tmp_path, lambda: load_tiny("turbo"), model_id="turbo") as server:
        assert "Anna" not in names(ready(server))  # Turbo hears other things in a recording


def test_concurrent_uploads_of_one_name(tiny):
    """One of them succeeds."""
    answers = in_threads(*[lambda: upload(tiny, "same").status_code] * 4)
    assert sorted(answers) == [200, 409, 409, 409]


def test_the_folder_is_made_when_it_is_needed(tmp_path):
    store = VoiceStore(tmp_path / "a" / "b", load_mini(), 10)
    assert not (tmp_path / "a").exists()
    assert store.listing()["data"][0]["id"] == "default"


def as_two_files(model, folder, name, seed=0):
    """Writes a voice as earlier versions stored it."""
    identity = voice_id(name, "llama")
    model.prepare_voice(io.BytesIO(recording(seed=seed))).save(folder / f"{identity}.pt")
    about = {"name": name, "kind": "llama", "family": "english", "seconds": 6.0, "created_at": 1, "consent": None}
    (folder / f"{identity}.json").write_text(json.dumps(about))


def test_models_of_two_kinds_have_voices_of_one_name(cloning, tmp_path):
    one = VoiceStore(tmp_path, cloning, 10)
    one.add("Anna", io.BytesIO(recording(seed=1)))
    before = one.get("Anna").t3.speaker_emb
    config = SimpleNamespace(t3=SimpleNamespace(is_gpt=True), family="turbo")
    turbo = SimpleNamespace(config=config, conds=None, prepare_voice=cloning.prepare_voice)
    other = VoiceStore(tmp_path, turbo, 10)
    assert uploaded(other) == []
    other.add("anna", io.BytesIO(recording(seed=2)))
    assert (uploaded(one), uploaded(other)) == (["Anna"], ["anna"])
    again = VoiceStore(tmp_path, cloning, 10)
    assert np.array_equal(again.get("Anna").t3.speaker_emb, before)
    other.delete("anna")
    assert uploaded(VoiceStore(tmp_path, cloning, 10)) == ["Anna"]


def test_a_voice_of_two_files_is_listed_once_both_exist(cloning, tmp_path):
    """A network file system may show one before the other."""
    as_two_files(cloning, tmp_path, "Anna")
    (sound,) = tmp_path.glob("*.pt")
    hidden = sound.rename(tmp_path / "hidden")
    other = VoiceStore(tmp_path, cloning, 10)
    assert uploaded(other) == []
    os.utime(tmp_path, (0, 1.7e9))
    assert uploaded(other) == []
    hidden.rename(sound)
    os.utime(tmp_path, (0, 1.7e9))
    assert uploaded(other) == ["Anna"]


def test_a_folder_of_an_earlier_version(cloning, tmp_path):
    as_two_files(cloning, tmp_path, "Anna", seed=3)
    store = VoiceStore(tmp_path, cloning, 10)
    expected = cloning.prepare_voice(io.BytesIO(recording(seed=3)))
    assert np.array_equal(store.get("anna").t3.speaker_emb, expected.t3.speaker_emb)
    assert store.get("anna") is store.get("Anna")
    with pytest.raises(ApiError, match="already"):
        store.add("Anna", io.BytesIO(recording(seed=4)))
    store.delete("Anna")
    assert not list(tmp_path.iterdir())
    store.add("Anna", io.BytesIO(recording(seed=4)))
    assert [path.suffix for path in tmp_path.iterdir()] == [".pt"]


def test_two_changes_within_one_tick_of_the_folders_clock_are_noticed(cloning, tmp_path, monkeypatch):
    monkeypatch.setattr("chatterbox_opt.serve.voice_files.folder.SETTLED", 1000)
    tick = time.time()
    one, other = (VoiceStore(tmp_path, cloning, 10) for _ in range(2))
    for seed, name in enumerate(("a", "b", "c")):
        one.add(name, io.BytesIO(recording(seed=seed)))
        os.utime(tmp_path, (tick, tick))
        assert name in uploaded(other)


def test_a_file_that_another_server_is_writing_is_kept(cloning, tmp_path):
    half = tmp_path / f"{voice_id('Half', 'llama')}.pt.part"
    half.write_bytes(b"half")
    assert not uploaded(VoiceStore(tmp_path, cloning, 10))
    assert half.exists()


def test_an_unchanged_folder_is_not_read_again(cloning, tmp_path, monkeypatch):
    store = VoiceStore(tmp_path, cloning, 10)
    store.add("Anna", io.BytesIO(recording()))
    os.utime(tmp_path, (0, 1.7e9))
    assert uploaded(store) == ["Anna"]
    monkeypatch.setattr(os, "scandir", lambda folder: pytest.fail("read again"))
    assert uploaded(store) == ["Anna"]
