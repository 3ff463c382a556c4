"""The example of docs/long_form.md works as printed."""

import re
import shlex
from pathlib import Path

import pytest

from chatterbox_opt import OptimizedChatterboxTTS, read_aloud
from chatterbox_opt.cli import parser
from chatterbox_opt.reading.cast import load_cast

PAGE = (Path(__file__).parents[2] / "docs" / "long_form.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    for name, text in re.findall(r"cat > (\S+) <<'END'\n(.*?)\nEND\n", PAGE, re.S):
        (tmp_path / name).write_text(text)
    return tmp_path


def test_its_files_make_a_book(folder):
    pytest.importorskip("markdown_it", reason="markdown-it-py is not installed: pip install markdown-it-py")
    model = OptimizedChatterboxTTS.from_random(size="tiny", seed=0)
    options = dict(cast=folder / "cast.toml", captions="srt", max_new_tokens=8)
    written = read_aloud(model, folder / "lake.md", folder / "lake.flac", **options)
    assert [p.name for p in written] == ["lake.flac", "lake.srt"]
    said = written[1].read_text()
    for text in ("The Lake", "Who took the boat?", "In the evening the birds came back"):
        assert text in said
    assert set(load_cast(folder / "cast.toml")) == {"narrator", "Anna", "Ben"}


def test_its_commands_are_understood():
    commands = re.findall(r"chatterbox-opt (?:read|say) [^`\n]*", PAGE)
    assert len(commands) >= 2
    for command in commands:
        parser().parse_args(shlex.split(command)[1:])
