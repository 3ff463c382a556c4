"""`cache_packed`: the first start packs, later ones load that, and never an entry of other weights."""

import json
import logging
import os
import shutil
import subprocess
import sys
import time

import pytest
import safetensors.torch
import torch

from chatterbox_opt import OptimizedChatterboxTTS
from chatterbox_opt.packing import cache
from chatterbox_opt.weights.packed import MARKER, NAMES


@pytest.fixture
def root(tmp_path):
    return tmp_path / "cache"


def start(folder, root, quantize="int8", **how):
    return OptimizedChatterboxTTS.from_local(
        folder, "cpu", quantize=quantize, cache_packed=root, enable_watermark=False, **how
    )


def said(model):
    return model.generate("Hello there.", seed=3, max_new_tokens=12)


def entries(root):
    """Returns the entries, by time."""
    return {entry.name: (entry / MARKER).stat().st_mtime_ns for entry in root.iterdir()}


def change(folder, value=1.0):
    """Another T3 of the same size."""
    file = folder / "t3_cfg.safetensors"
    state = safetensors.torch.load_file(file)
    state["speech_head.weight"] += value
    safetensors.torch.save_file(state, file)


def test_the_second_start_takes_what_the_first_made(folder, root):
    wanted = said(OptimizedChatterboxTTS.from_local(folder, "cpu", quantize="int8", enable_watermark=False))
    assert torch.equal(said(start(folder, root)), wanted)
    before = entries(root)
    assert len(before) == 1
    assert torch.equal(said(start(folder, root)), wanted)
    assert entries(root) == before


def test_every_form_has_an_entry_of_its_own(folder, root):
    forms = (dict(), dict(quantize=None), dict(quantize=None, use_mixed_precision=False))
    for _ in range(2):
        models = [start(folder, root, **form) for form in forms]
        assert [m.options.quantize for m in models] == ["int8", None, None]
        assert models[2].options.dtype == models[2].options.s3gen_dtype == "float32"
        assert len({str(m.t3.tfmr) + str(m.t3.speech_head) + m.options.dtype for m in models}) == 3
        assert len(entries(root)) == 3


def test_a_changed_checkpoint_is_packed_anew(folder, root, caplog):
    said(start(folder, root))
    before = entries(root)
    change(folder)
    model = start(folder, root)
    assert "t3_cfg.safetensors has changed since" in caplog.text
    assert entries(root).keys() == before.keys()
    assert entries(root) != before
    wanted = OptimizedChatterboxTTS.from_local(folder, "cpu", quantize="int8", enable_watermark=False)
    assert torch.equal(said(model), said(wanted))


def test_a_change_that_keeps_size_and_time_is_seen(folder, root, caplog):
    """As with files from an archive, which keep their times."""
    start(folder, root)
    file = folder / "t3_cfg.safetensors"
    then, data = file.stat().st_mtime_ns, file.read_bytes()
    half = len(data) // 2
    file.write_bytes(data[:half] + data[half:].translate(bytes(byte ^ 1 for byte in range(256))))
    os.utime(file, ns=(then, then))
    start(folder, root)
    assert "t3_cfg.safetensors has changed since" in caplog.text


def test_times_cut_to_whole_seconds_are_no_change(folder, root):
    """As in the layer of an image that was built with the entry in it."""
    start(folder, root)
    before = entries(root)
    for path in folder.iterdir():
        os.utime(path, (int(path.stat().st_mtime),) * 2)
    start(folder, root)
    assert entries(root) == before


def test_a_changed_configuration_is_seen(folder, root, caplog):
    start(folder, root)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_chars": 50}))
    assert start(folder, root).config.max_chars == 50
    assert "config.json has changed since" in caplog.text
    file.unlink()
    with pytest.raises(ValueError, match="is it whole"):  # of the published size, which it is not
        start(folder, root)


@pytest.mark.parametrize("name", ["conds.pt", "tokenizer.json", "config.json"])
def test_an_entry_that_lost_a_file_is_made_anew(folder, root, caplog, name):
    wanted = said(start(folder, root))
    (entry,) = root.iterdir()
    (entry / name).unlink()
    assert torch.equal(said(start(folder, root)), wanted)
    assert f"{name} is missing" in caplog.text
    assert (entry / name).exists()


@pytest.mark.parametrize("name", [*NAMES.values(), MARKER, "conds.pt", "config.json"])
def test_a_spoilt_entry_is_made_anew(folder, root, caplog, name):
    wanted = said(start(folder, root))
    (entry,) = root.iterdir()
    data = bytearray((entry / name).read_bytes())
    data[len(data) // 2] ^= 64
    (entry / name).write_bytes(data)
    assert torch.equal(said(start(folder, root)), wanted)
    assert "is made anew" in caplog.text
    assert bytes(data) != (entry / name).read_bytes()


def test_another_files_t3_and_decoder_have_entries_of_their_own(folder, folders, root):
    shutil.copy(folders["tts"] / "t3_cfg.safetensors", folder / "t3_mine.safetensors")
    for how in ({}, {"t3_file": "t3_mine.safetensors"}, {"decoder": str(folders["tts"] / "s3gen.safetensors")}):
        start(folder, root, **how)
        start(folder, root, **how)
    assert len(entries(root)) == 3


def test_a_cache_that_cannot_be_written_is_done_without(folder, root, caplog):
    root.write_text("a file")
    with caplog.at_level(logging.WARNING):
        assert said(start(folder, root)).numel()
    assert "going on without" in caplog.text


def test_a_cache_that_cannot_be_looked_at_is_done_without(folder, root, caplog, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(cache, "read_packed", refused)
    monkeypatch.setattr(cache, "pack", lambda folder, out, *_, **__: refused(out))
    assert said(start(folder, root)).numel()
    assert "Permission denied" in caplog.text
    assert caplog.text.count("going on without") == 1


def test_what_a_killed_start_left_goes(folder, root):
    code = f"""
import os
from chatterbox_opt import OptimizedChatterboxTTS
from chatterbox_opt.packing import make
make.write_rest = lambda *_: os.kill(os.getpid(), 9)
OptimizedChatterboxTTS.from_local({str(folder)!r}, "cpu", quantize="int8", cache_packed={str(root)!r})
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == -9
    (left,) = root.iterdir()
    start(folder, root)
    assert left.exists()  # it may belong to another process that is still writing
    long_ago = time.time() - 2 * cache.ABANDONED
    os.utime(left, (long_ago, long_ago))
    start(folder, root)
    assert not left.exists()
    assert len(entries(root)) == 1


def test_two_first_starts_at_once(folder, root, monkeypatch):
    """The slower one loads what the faster one has made."""
    packs = cache.pack

    def while_another_is_quicker(*args, **how):
        monkeypatch.setattr(cache, "pack", packs)
        start(folder, root)
        return packs(*args, **how)

    monkeypatch.setattr(cache, "pack", while_another_is_quicker)
    wanted = said(start(folder, root))
    assert len(list(root.iterdir())) == 1
    assert torch.equal(said(start(folder, root)), wanted)


def test_a_packed_folder_needs_no_entry(folder, root, tmp_path):
    from chatterbox_opt.packing import pack

    pack(folder, tmp_path / "packed", quantize="int8")
    start(tmp_path / "packed", root)
    assert not root.exists()


def test_the_users_cache_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    start(folder, True)
    assert len(entries(tmp_path / "home" / "chatterbox_opt" / "packed")) == 1
