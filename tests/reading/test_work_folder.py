"""The folder of spoken paragraphs: what lies beside them, who else writes into it, and what is damaged."""

import os
from pathlib import Path

import pytest
from books import LINES, SHORT, bytes_of

from chatterbox_opt import read_aloud


def test_files_of_others_in_the_work_folder_are_left_alone(model, script, tmp_path):
    others = [tmp_path / "work" / name for name in ("notes.txt", "anna.flac", "out.wav", "0123.json")]
    others[0].parent.mkdir()
    for other in others:
        other.write_text("mine")
    for name in (f"{'0' * 32}.half.flac", f"{'0' * 32}.json.part"):
        (tmp_path / "work" / name).write_text("of a run that was killed")
    read_aloud(model, script, tmp_path / "a.wav", work=tmp_path / "work", **SHORT)
    assert [other.read_text() for other in others] == ["mine"] * 4
    assert not list((tmp_path / "work").glob("0" * 32 + "*"))


def test_the_book_is_finished_beside_itself(model, script, tmp_path, monkeypatch):
    """The work folder may be on another file system, from which no file can be renamed into place."""
    replace, folders = os.replace, []

    def listed(here, there):
        folders.append((Path(here).parent, Path(there).parent))
        replace(here, there)

    monkeypatch.setattr(os, "replace", listed)
    read_aloud(model, script, tmp_path / "a.wav", captions="srt", work=tmp_path / "work", **SHORT)
    assert {here for here, _ in folders} == {tmp_path, tmp_path / "work"}
    assert all(here == there for here, there in folders)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.srt", "a.wav", "book.txt", "work"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="there is no folder that refuses files to everybody")
def test_an_unwritable_folder_is_told_ahead_of_the_first_sound(model, script, tmp_path, spoken):
    with pytest.raises(ValueError, match="/proc: no file can be written there"):
        read_aloud(model, script, "/proc/a.wav", work=tmp_path / "work", **SHORT)
    assert not spoken


def test_two_runs_do_not_share_a_work_folder_at_once(model, script, tmp_path, spoken):
    pytest.importorskip("fcntl", reason="there are no such locks here")
    refused = []

    def second(*_):
        with pytest.raises(ValueError, match=r"a\.wav\.work: another run is writing into it"):
            read_aloud(model, script, tmp_path / "a.wav", **SHORT)
        refused.append(True)

    read_aloud(model, script, tmp_path / "a.wav", progress=second, **SHORT)
    assert refused
    assert len(spoken) == LINES


def test_two_books_may_have_one_work_folder(model, script, tmp_path, spoken):
    other = tmp_path / "other.txt"
    other.write_text("Another book.")
    work = dict(work=tmp_path / "work", **SHORT)
    read_aloud(model, script, tmp_path / "a.wav", **work)
    read_aloud(model, other, tmp_path / "b.wav", **work)
    read_aloud(model, script, tmp_path / "a.wav", **work)
    assert len(spoken) == LINES + 1
    script.write_text("Only this.")
    read_aloud(model, script, tmp_path / "a.wav", **work)
    assert len(list((tmp_path / "work").glob("*.flac"))) == 2


@pytest.mark.parametrize("left", [0, 60, -9])
@pytest.mark.parametrize("ending", ["flac", "json"])
def test_a_damaged_paragraph_is_spoken_again(model, tmp_path, spoken, left, ending):
    (tmp_path / "a.txt").write_text("One.\n\nTwo.")
    how = dict(captions="json", max_new_tokens=12)
    first = bytes_of(read_aloud(model, tmp_path / "a.txt", tmp_path / "a.wav", **how))
    kept = min(path for path in (tmp_path / "a.wav.work").glob(f"*.{ending}") if not path.name.startswith("book"))
    kept.write_bytes(kept.read_bytes()[:left])
    assert bytes_of(read_aloud(model, tmp_path / "a.txt", tmp_path / "a.wav", **how)) == first
    assert len(spoken) == 3
