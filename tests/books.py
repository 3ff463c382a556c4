"""A script, how it is read, and the files that come of it."""

from pathlib import Path

from chatterbox_opt.reading.cast import Role

TEXT = (
    "# A title line\n\nChapter 1\n\nOne goes here.\n\nTwo, two.\n\nAnna: Three.\nBen: Four.\n\n"
    "Chapter 2\n\nTwo, two.\n"
)
LINES = 8
CAST = {"Anna": Role(seed=5), "Ben": Role(options={"temperature": 0.6})}
SHORT = dict(max_new_tokens=12, cast=CAST)


def bytes_of(paths: list[Path]) -> list[bytes]:
    return [path.read_bytes() for path in paths]
