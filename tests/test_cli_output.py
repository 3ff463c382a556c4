"""What the commands write: files, whole or not at all, and standard output; and what they say if that fails."""

import io
import os
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import soundfile
import torch

from chatterbox_opt import cli
from chatterbox_opt.audio import io as audio_io
from chatterbox_opt.cli import main
from chatterbox_opt.tts import OptimizedChatterboxTTS

NOISE = torch.from_numpy(np.random.default_rng(0).uniform(-0.9, 0.9, (1, 5 * 24_000)).astype(np.float32))
LIMIT = 4096  # bytes of a file while the disk is full


@contextmanager
def full_disk():
    """No file gets longer than LIMIT: the system refuses it, as it does on a full disk, with another reason."""
    resource = pytest.importorskip("resource", reason="the limit is one of Unix")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("tts") / "model"
    assert main(["random-checkpoint", str(where), "--seed", "3"]) == 0
    return where


@pytest.fixture
def source(folder):
    return ["--dir", str(folder), "--device", "cpu"]


@pytest.fixture
def noisy(monkeypatch):
    """Speech is five seconds of noise, and takes no time."""
    monkeypatch.setattr(OptimizedChatterboxTTS, "generate", lambda *_, **__: NOISE)


def complaint(capsys):
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.usefixtures("noisy")
@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.ogg", "a"])
def test_a_full_disk_leaves_the_earlier_file(name, source, tmp_path, capsys):
    (tmp_path / name).write_bytes(b"earlier")
    with full_disk():
        assert main(["say", "Hello.", "-o", str(tmp_path / name), *source]) == 1
    assert complaint(capsys) == f"chatterbox-opt: {tmp_path / name}: File too large"
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, b"earlier")]


@pytest.mark.parametrize("family", ["tts", "mtl"])
def test_a_full_disk_leaves_no_half_of_a_checkpoint(family, tmp_path, capsys):
    with full_disk():
        assert main(["random-checkpoint", str(tmp_path), "--family", family]) == 1
    assert complaint(capsys) == f"chatterbox-opt: {tmp_path}: File too large"
    assert not list(tmp_path.iterdir()), "the folder was there before"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.usefixtures("noisy")
def test_a_device_is_written_to_and_not_replaced(source, capsys):
    assert main(["say", "Hello.", "-o", "/dev/full", *source]) == 1
    assert complaint(capsys) == "chatterbox-opt: /dev/full: No space left on device"
    assert main(["say", "Hello.", "-o", "/dev/null", *source]) == 0
    assert not os.path.isfile("/dev/null")


@pytest.mark.usefixtures("noisy")
def test_the_file_of_a_link_is_replaced_and_the_link_stays(source, tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "a.wav"
    link.symlink_to(tmp_path / "there" / "b.wav")
    assert main(["say", "Hello.", "-o", str(link), *source]) == 0
    assert link.is_symlink()
    assert soundfile.info(tmp_path / "there" / "b.wav").duration == 5


@pytest.mark.usefixtures("noisy")
def test_processes_of_one_id_write_apart(source, tmp_path, monkeypatch):
    """Two containers with one volume: their half-written files have names of their own."""
    names = []
    own = audio_io.write_wav
    monkeypatch.setattr(audio_io, "write_wav", lambda path, *how: names.append(path) or own(path, *how))
    for _ in range(2):
        assert main(["say", "Hello.", "-o", str(tmp_path / "a.wav"), *source]) == 0
    assert len(set(names)) == 2


def test_the_file_of_captions_may_be_a_link(source, tmp_path):
    link = tmp_path / "a.srt"
    link.symlink_to(tmp_path / "b.srt")
    say = ["say", "Hello.", "-o", str(tmp_path / "a.wav"), "--captions", str(link), "--max-new-tokens", "20", *source]
    assert main(say) == 0
    assert link.is_symlink()
    assert (tmp_path / "b.srt").is_file()


def test_a_full_disk_during_a_book_names_the_work_folder_or_the_book(source, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("Hello there.")
    book, work = tmp_path / "a.wav", tmp_path / "work"
    read = ["read", str(tmp_path / "a.txt"), "-o", str(book), "--work", str(work), *source]
    with full_disk():
        assert main(read) == 1
    assert complaint(capsys) == f"chatterbox-opt: {work}: File too large"
    assert main(read) == 0
    book.write_bytes(b"earlier")
    capsys.readouterr()
    with full_disk():
        assert main(read) == 1
    assert complaint(capsys) == f"chatterbox-opt: {book}: File too large"
    assert book.read_bytes() == b"earlier"


@pytest.mark.parametrize("family", ["tts", "mtl"])  # the second has files that torch writes
def test_a_full_disk_names_the_new_checkpoint(family, folder, tmp_path, capsys):
    with full_disk():
        assert main(["random-checkpoint", str(tmp_path / "new"), "--family", family]) == 1
        assert complaint(capsys) == f"chatterbox-opt: {tmp_path / 'new'}: File too large"
        assert main(["pack", str(folder), str(tmp_path / "packed")]) == 1
        assert complaint(capsys) == f"chatterbox-opt: {tmp_path / 'packed'}: File too large"


def test_a_full_disk_names_the_folder_of_a_batch(source, tmp_path, capsys):
    (tmp_path / "t.jsonl").write_text('{"text": "Hello.", "max_new_tokens": 12}\n')
    batch = ["batch", str(tmp_path / "t.jsonl"), "-o", str(tmp_path / "out"), "--format", "wav", *source]
    with full_disk():
        assert main(batch) == 1
    assert complaint(capsys) == f"chatterbox-opt: {tmp_path / 'out'}: File too large"
    assert main(batch) == 0


def test_a_dash_is_standard_output(tmp_path):
    """Of a process of its own: libraries may write to its standard output too."""
    command = [sys.executable, "-m", "chatterbox_opt", "say", "--model", "mini", "--device", "cpu", "Hello."]
    piped = subprocess.run(
        [*command, "--seed", "1", "-o", "-", "--captions", "a.srt"], capture_output=True, cwd=tmp_path, check=True
    )
    subprocess.run([*command, "--seed", "1", "-o", "a.wav"], cwd=tmp_path, check=True)
    assert piped.stderr.decode().splitlines() == [f"-: {len(piped.stdout[44:]) / 48_000:.2f} s", "a.srt"]
    sound, rate = soundfile.read(io.BytesIO(piped.stdout), dtype="int16")
    wanted, _ = soundfile.read(tmp_path / "a.wav", dtype="int16")
    assert rate == 24_000
    assert len(piped.stdout) == 44 + 2 * len(wanted), "the header and the samples, and nothing else"
    assert abs(sound.astype(int) - wanted).max() <= 1, "libsndfile rounds otherwise"
    assert {path.name for path in tmp_path.iterdir()} == {"a.wav", "a.srt"}


@pytest.mark.parametrize("command", ["say", "convert"])
def test_no_sound_is_written_to_a_terminal(command, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main([command, __file__, "-o", "-", "--dir", "nowhere"]) == 1
    assert "this is a terminal" in complaint(capsys)


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_are_for_terminals(terminal, source, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    (tmp_path / "a.txt").write_text("Hello.")
    read = ["read", str(tmp_path / "a.txt"), "-o", str(tmp_path / "a.wav")]
    say = ["say", "Hello.", "--max-new-tokens", "8", "-o", str(tmp_path / "b.wav")]
    for words, shown in ((read, "reading: 100%"), (say, "speech tokens: 100%")):
        assert main([*words, *source]) == 0
        assert (shown in capsys.readouterr().err) == terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_the_bar_of_a_batch_is_for_terminals(terminal, tmp_path, monkeypatch):
    from chatterbox_opt.scale import batch

    asked = []
    monkeypatch.setattr(batch, "speak_table", lambda *_, **how: asked.append(how["verbose"]) or batch.Summary(0, 0))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    (tmp_path / "t.jsonl").write_text('{"text": "Hello."}\n')
    assert main(["batch", str(tmp_path / "t.jsonl"), "-o", str(tmp_path / "out")]) == 0
    assert asked == [terminal]


def test_an_unreachable_hub_names_only_options_that_there_are(monkeypatch, capsys):
    from chatterbox_opt.weights import hub

    def unreachable(*_, **__):
        raise hub.HubUnreachable("the hub did not answer")

    monkeypatch.setattr(hub, "download", unreachable)
    assert main(["say", "Hello.", "--device", "cpu"]) == 1
    assert complaint(capsys).endswith("from a shell: --dir FOLDER, or --model mini")
    assert cli.message_of(hub.HubUnreachable("no answer"), cli.parser().parse_args(["convert", "a.wav"])).endswith(
        "from a shell: --dir FOLDER"
    )
