"""Files are whole or not there, and errors say which file it was."""

import errno
import os

import pytest

from chatterbox_opt.files import naming, whole, write_whole


def test_a_disk_that_fills_leaves_the_earlier_file_and_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "a.json"
    write_whole(path, b"earlier")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as raised:
        write_whole(path, b"later")
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_errors_about_other_files_keep_their_names(tmp_path):
    with pytest.raises(FileNotFoundError) as raised, naming(tmp_path, tmp_path / "part"):
        (tmp_path / "other").read_bytes()
    assert raised.value.filename == str(tmp_path / "other")


@pytest.mark.parametrize("made", [True, False])
def test_a_folder_is_asked_for_the_reason_and_left_as_it_was(made, tmp_path):
    folder = tmp_path / "new"
    if made:
        folder.mkdir()
    with pytest.raises(ValueError, match="wrong"), naming(folder, folder):
        raise ValueError("wrong")
    assert list(tmp_path.rglob("*")) == ([folder] if made else [])


def test_an_error_that_is_not_the_systems_stays_as_it_is(tmp_path):
    with pytest.raises(ValueError, match="wrong"), whole(tmp_path / "a", tmp_path / "b"):
        raise ValueError("wrong")
    assert list(tmp_path.iterdir()) == []
