"""Voices of several servers: in a folder that they share, and in a store behind a URL."""

import errno
import io
import os
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import fsspec
import httpx
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from serving import load_tiny, ready, recording, running, uploaded

from chatterbox_opt.cli import parser
from chatterbox_opt.cli.serve import settings_of
from chatterbox_opt.serve.errors import ApiError
from chatterbox_opt.serve.voice_files.place import absolute, place_at
from chatterbox_opt.serve.voice_names import voice_id
from chatterbox_opt.serve.voices import VoiceStore

ANNA = voice_id("Anna", "llama")


class Renaming(LocalFileSystem):
    """A store whose unfinished files are visible, and that renames them."""

    protocol = "renaming"


fsspec.register_implementation("renaming", Renaming, clobber=True)
URLS = ("file", "memory", "renaming")


@pytest.fixture(params=["folder", *URLS])
def where(request, tmp_path):
    if request.param == "folder":
        return tmp_path / "voices"
    return f"{request.param}://{tmp_path}/voices"


@pytest.fixture
def memory():
    return f"memory://{uuid.uuid4().hex}"


def item(store, name):
    (found,) = (voice for voice in store.listing()["data"] if voice["name"] == name)
    return found


def add_voice(store, seed, name="Anna"):
    return store.add(name, io.BytesIO(recording(seed=seed)))


def same_voice(voice, other):
    return np.array_equal(voice.t3.speaker_emb, other.t3.speaker_emb)


def voice_of_seed(model, seed):
    return model.prepare_voice(io.BytesIO(recording(seed=seed)))


class Meanwhile:
    """A model that calls `interruption` once, after it has prepared a voice."""

    def __init__(self, model):
        self.config, self.conds, self._model, self.happens = model.config, model.conds, model, None

    def prepare_voice(self, audio):
        made = self._model.prepare_voice(audio)
        interruption, self.happens = self.happens, None
        if interruption is not None:
            interruption()
        return made


def test_servers_see_each_others_voices_and_deletions(cloning, where):
    one, other = (VoiceStore(where, cloning, 10) for _ in range(2))
    assert uploaded(one) == []
    identity = add_voice(one, 1)["id"]
    assert (uploaded(other), other.find("anna")) == (["Anna"], identity)
    assert same_voice(other.get("anna"), voice_of_seed(cloning, 1))
    with pytest.raises(ApiError) as caught:
        add_voice(other, 2)
    assert caught.value.status == 409
    one.delete("Anna")
    assert (uploaded(other), other.find("Anna")) == ([], None)
    add_voice(other, 2)
    assert uploaded(one) == ["Anna"]
    assert same_voice(one.get(identity), voice_of_seed(cloning, 2))
    assert uploaded(VoiceStore(where, cloning, 10)) == ["Anna"]


def test_of_two_servers_that_add_one_name_the_second_fails(cloning, where):
    late = Meanwhile(cloning)
    one, other = VoiceStore(where, late, 10), VoiceStore(where, cloning, 10)
    late.happens = lambda: add_voice(other, 2)
    with pytest.raises(ApiError) as caught:
        add_voice(one, 1)
    assert (caught.value.status, caught.value.code) == (409, "voice_exists")
    assert same_voice(one.get("Anna"), voice_of_seed(cloning, 2))
    assert same_voice(other.get("Anna"), voice_of_seed(cloning, 2))


def test_adding_one_name_twice_without_hard_links(cloning, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    test_of_two_servers_that_add_one_name_the_second_fails(cloning, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{ANNA}.pt"]


def test_a_voice_replaced_while_it_is_read_is_not_cached(cloning, where):
    reading = Meanwhile(cloning)
    one, other = VoiceStore(where, reading, 10), VoiceStore(where, cloning, 10)
    add_voice(other, 1)

    def replace():
        other.delete("Anna")
        add_voice(other, 2)
        one.refresh()  # for another request

    reading.happens = replace
    one.get("Anna")
    assert same_voice(one.get("Anna"), voice_of_seed(cloning, 2))


def test_a_voice_deleted_while_it_is_read_is_not_found(cloning, where):
    one, other = VoiceStore(where, cloning, 10), VoiceStore(where, cloning, 10)
    add_voice(other, 1)
    assert uploaded(one) == ["Anna"]
    read = one.place.read

    def too_late(identity):
        other.delete("Anna")
        return read(identity)

    one.place.read = too_late
    with pytest.raises(ApiError) as caught:
        one.get("Anna")
    assert caught.value.code == "voice_not_found"
    assert uploaded(one) == []


def test_listing_while_another_server_deletes(cloning, where):
    one, other = VoiceStore(where, cloning, 10), VoiceStore(where, cloning, 10)
    for name in ("Anna", "Bert"):
        add_voice(other, 1, name)
    listing = one.place.listing

    def too_early():
        found = listing()
        other.delete("Anna")
        one.place.listing = listing
        return found

    one.place.listing = too_early
    assert uploaded(one) == ["Bert"]


@pytest.mark.parametrize("scheme", ["memory", "renaming"])
@pytest.mark.parametrize("step", ["pipe_file", "mv"])
def test_a_failed_write_leaves_no_file(cloning, tmp_path, scheme, step):
    if (scheme, step) == ("memory", "mv"):
        pytest.skip("a put is all there is to it")
    store = VoiceStore(f"{scheme}://{tmp_path}/voices", cloning, 10)
    fs, root = store.place.fs, store.place.root

    def fail(path, data, **how):
        if step == "pipe_file" and scheme == "renaming":
            with fs.open(path, "wb") as file:
                file.write(data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    setattr(fs, step, fail)
    try:
        with pytest.raises(ApiError) as caught:
            add_voice(store, 1)
    finally:
        delattr(fs, step)
    assert (caught.value.status, "full" in caught.value.message) == (507, True)
    assert uploaded(store) == []
    assert not (fs.exists(root) and fs.ls(root))
    add_voice(store, 1)
    assert uploaded(store) == ["Anna"]


def files_of(store):
    place = store.place
    return (place.fs, place.root) if hasattr(place, "fs") else (LocalFileSystem(), str(place.folder))


def test_a_damaged_voice_is_an_error_in_use_and_in_the_list(cloning, where):
    add_voice(VoiceStore(where, cloning, 10), 1)
    one = VoiceStore(where, cloning, 10)
    fs, root = files_of(one)
    path = f"{root}/{ANNA}.pt"
    data = bytearray(fs.cat_file(path))
    data[len(data) // 2] ^= 1
    fs.pipe_file(path, bytes(data))
    assert uploaded(one) == ["Anna"]
    for _ in range(2):
        with pytest.raises(ApiError) as caught:
            one.get("Anna")
        assert (caught.value.status, caught.value.code) == (400, "voice_damaged")
        assert "has changed" in caught.value.message
    assert "has changed" in item(one, "Anna")["error"]
    data[len(data) // 2] ^= 1
    fs.pipe_file(path, bytes(data))
    assert same_voice(one.get("Anna"), voice_of_seed(cloning, 1))
    assert item(one, "Anna")["error"] is None
    one.delete("Anna")
    add_voice(one, 1)
    assert item(one, "Anna")["error"] is None
    assert same_voice(one.get("Anna"), voice_of_seed(cloning, 1))


def test_a_file_without_a_name_is_listed_and_can_be_deleted(cloning, where):
    add_voice(VoiceStore(where, cloning, 10), 1)
    one = VoiceStore(where, cloning, 10)
    fs, root = files_of(one)
    path = f"{root}/{ANNA}.pt"
    fs.pipe_file(path, fs.cat_file(path)[:5000])
    if fs.protocol != "memory":
        os.utime(path, (0, 1e9))  # nobody is still writing it
    (found,) = (voice for voice in one.listing()["data"] if voice["deletable"])
    assert (found["id"], "does not say" in found["error"]) == (ANNA, True)
    with pytest.raises(ApiError, match="does not say"):
        one.get("Anna")
    with pytest.raises(ApiError) as caught:
        add_voice(one, 1)
    assert caught.value.status == 409
    one.delete(found["id"])
    assert uploaded(one) == []


def test_cached_voices_work_while_the_store_is_unreachable(cloning, memory, monkeypatch):
    one, other = (VoiceStore(memory, cloning, 10) for _ in range(2))
    add_voice(one, 1)
    add_voice(other, 2, "Bert")

    def unreachable(*_, **how):
        raise RuntimeError("connection refused")  # stores have errors of their own

    monkeypatch.setattr(type(one.place.fs), "ls", unreachable)
    one.place.patience = 0.0
    assert same_voice(one.get("Anna"), voice_of_seed(cloning, 1))
    assert one.get("alloy") is None
    assert one.get(None) is None
    for asks in (one.listing, lambda: one.get("Bert"), lambda: one.delete("Anna"), lambda: add_voice(one, 3, "Carl")):
        with pytest.raises(ApiError) as caught:
            asks()
        assert caught.value.status == 503
    with pytest.raises(OSError, match=r"memory.*connection refused"):
        VoiceStore(memory, cloning, 10)
    monkeypatch.undo()
    assert uploaded(one) == ["Anna", "Bert"]


def test_a_store_is_not_listed_for_every_speech(cloning, memory, monkeypatch):
    one = VoiceStore(memory, cloning, 10)
    add_voice(one, 1)
    voice = one.get("Anna")
    monkeypatch.setattr(one.place, "patience", 1000.0)
    monkeypatch.setattr(one.place, "listing", lambda: pytest.fail("listed again"))
    assert one.get("Anna") is voice
    assert one.get("alloy") is None


def test_a_slow_store_delays_only_requests_that_need_it(cloning, memory, monkeypatch):
    one = VoiceStore(memory, cloning, 10)
    add_voice(one, 1)
    voice, listing, looks, done = one.get("Anna"), one.place.listing, threading.Event(), threading.Event()

    def slow():
        looks.set()
        assert done.wait(60)
        return listing()

    monkeypatch.setattr(one.place, "listing", slow)
    asks = threading.Thread(target=one.listing)
    asks.start()
    try:
        assert looks.wait(60)
        one._looked = 0.0  # longer ago than a store has patience
        assert one.get("Anna") is voice
        assert one.get("alloy") is None
    finally:
        done.set()
        asks.join()


def test_unfinished_files_are_removed_later(cloning, tmp_path):
    half = tmp_path / f"{ANNA}.pt.0.part"
    half.write_bytes(b"half")
    store = VoiceStore(f"renaming://{tmp_path}", cloning, 10)
    assert uploaded(store) == []
    assert half.exists()  # another server may be writing it
    os.utime(half, (0, 1e9))
    VoiceStore(f"renaming://{tmp_path}", cloning, 10)
    assert not half.exists()


def test_a_kept_voice_is_a_saved_voice(cloning, tmp_path):
    add_voice(VoiceStore(tmp_path, cloning, 10), 1)
    assert same_voice(cloning.prepare_voice(tmp_path / f"{ANNA}.pt"), voice_of_seed(cloning, 1))


def test_servers_with_a_url(memory):
    with running(memory, load_tiny, model_id="english") as one, running(memory, load_tiny, model_id="english") as other:
        for each in (one, other):
            ready(each)
        files = {"audio_sample": ("x.wav", recording(), "audio/wav")}
        made = httpx.post(f"{one.url}/v1/audio/voices", data={"name": "Anna"}, files=files, timeout=60)
        assert made.status_code == 200
        listed = httpx.get(f"{other.url}/v1/audio/voices").json()["data"]
        assert made.json() in listed
        assert httpx.get(f"{other.url}/get_reference_files").json() == ["Anna"]
        body = {"input": "Hello.", "response_format": "pcm", "seed": 1}
        sounds = [
            httpx.post(f"{each.url}/v1/audio/speech", json=body | {"voice": voice}, timeout=60)
            for each, voice in ((one, "Anna"), (other, "Anna"), (other, "default"))
        ]
        assert [sound.status_code for sound in sounds] == [200] * 3
        assert sounds[0].content == sounds[1].content != sounds[2].content
        assert httpx.delete(f"{other.url}/v1/audio/voices/Anna").status_code == 200
        assert httpx.get(f"{one.url}/v1/audio/voices/Anna").status_code == 404


def test_the_command_leaves_urls_unchanged():
    for given in ("s3://bucket/voices", "memory://voices"):
        settings = settings_of(parser().parse_args(["serve", "--model", "mini", "--voices", given]))
        assert settings.voices_dir == absolute(settings.voices_dir) == given
    assert absolute("voices") == Path("voices").absolute()


def test_an_unknown_scheme_is_refused():
    with pytest.raises(ValueError, match="nonsense://voices"):
        place_at("nonsense://voices")


def test_without_a_url_fsspec_is_not_imported(tmp_path):
    code = "import sys; from chatterbox_opt.serve.voice_files.place import place_at; place_at('voices').listing(); "
    code += "assert 'chatterbox_opt.serve.voice_files.url' not in sys.modules and 'fsspec' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_a_file_url_is_a_folder(tmp_path):
    assert place_at(f"file://{tmp_path}/a b").folder == tmp_path / "a b"
