"""Reads a script into sound files with captions. Spoken paragraphs are stored, so that an interrupted run continues."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import captions as captioning
from ..audio.io import SoundWriter, writable_kinds
from ..audio.joins import samples
from ..checks import check_loudness, check_seed
from ..files import check_writable, locked, text_of, whole, write_whole
from ..speech import aligned
from ..takes import asked_for
from . import script as scripts
from .cast import NARRATOR, Cast, cast_of
from .plan import Line, Planner, chooses
from .speakers import check_names
from .store import Store

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..keywords import ReadingKeywords

logger = logging.getLogger(__name__)

TRIES = 3  # seeds tried for a line that has no sound


def read_aloud(
    model: Any,
    script: str | Path,
    output: str | Path,
    *,
    cast: Any = None,
    kind: str | None = None,
    chapters: bool = False,
    captions: str | None = None,
    markup: bool = False,
    align: Any = None,
    seed: int = 0,
    breath: bool = True,
    loudness: float | None = None,
    score: Callable[[Any], float] | None = None,
    work: str | Path | None = None,
    progress: Callable[[int, int, int], None] | None = None,
    **options: Unpack[ReadingKeywords],
) -> list[Path]:
    """Returns the paths of the files written. `cast` is a TOML file, or a mapping from names to roles, voices, or the
    entries of a file's table; `kind` is "text", "markdown" or "dialogue", by default from the file's ending; `chapters`
    writes one file per chapter, OUTPUT-01 and so on; `captions` is "srt", "vtt" or "json"; `work` is the folder of
    spoken paragraphs, by default OUTPUT.work. `progress` is called with (characters spoken in this run, in earlier
    runs, in all). `score` chooses among `takes`, see docs/takes.md. The other keywords hold for roles without their
    own."""
    output, script = Path(output), Path(script)
    check(output, captions)
    roles = cast_of(cast)
    check_names(roles)
    _report_narrators(roles)
    text = text_of(script)
    try:
        found = scripts.parse(text, kind or kind_of(script), roles if roles.given else (), markup)
    except ValueError as error:
        raise ValueError(f"{script}: {error}") from error
    if score is not None and not chooses(options, roles):
        asked_for(score=score)  # raises
    cancel = options.pop("cancel", None)
    how: dict[str, Any] = {**options, "breath": breath, "loudness": check_loudness(loudness)}
    planner = Planner(model, roles, markup, how, score, check_seed(seed) or 0)
    plan = planner.chapters(found)
    reader = Reader(model, Store(Path(work) if work else output.with_name(output.name + ".work")), align, cancel)
    reader.check([line for lines in plan for line in lines])
    with locked(reader.store.folder):
        return reader.write(plan, output, chapters, captions, progress)


def kind_of(script: Path) -> str:
    return "markdown" if script.suffix.lower() in (".md", ".markdown") else "text"


def check(output: Path, captions: str | None) -> None:
    """Raises ValueError if the output cannot be written: before hours of work, not after them."""
    folders = (output.parent, _real(output).parent)
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{output}: there is no folder {folder}")
    if output.is_dir() or not output.suffix or output.suffix[1:].upper() not in writable_kinds():
        raise ValueError(f"{output}: a name that ends in .wav, .flac, .ogg or .mp3 is needed")
    if captions is not None:
        captioning.check_kind(f".{captions}", f"captions={captions!r}")
    for folder in folders:
        check_writable(folder)


class Reader:
    def __init__(self, model: Any, store: Store, align: Any, cancel: Any) -> None:
        self.model, self.store, self.align, self.cancel = model, store, align, cancel
        self.aligner = getattr(align, "__qualname__", None) or type(align).__qualname__  # by which word times are kept

    def check(self, lines: Sequence[Line]) -> None:
        """Raises ValueError for wrong marks, voices and options, before anything is spoken."""
        for line in lines:
            self._job(line)

    def write(
        self, plan: list[list[Line]], output: Path, chapters: bool, captions: str | None,
        progress: Callable[[int, int, int], None] | None,
    ) -> list[Path]:
        self.store.need(output, {line.key for lines in plan for line in lines})
        total = sum(len(line.paragraph.text) for lines in plan for line in lines)
        kept = sum(len(line.paragraph.text) for lines in plan for line in lines if line.key in self.store)
        spoken, written = 0, []
        width = max(2, len(str(len(plan))))
        files = plan if chapters else [[line for lines in plan for line in lines]]
        for number, lines in enumerate(files, 1):
            for line in lines:
                if progress is not None:
                    progress(spoken, kept, total)
                spoken += 0 if line.key in self.store else len(line.paragraph.text)
                self.speak(line)
            path = output.with_stem(f"{output.stem}-{number:0{width}}") if chapters else output
            written += self.assemble(lines, path, captions)
        if chapters:
            _report_others(output, written)
        if progress is not None:
            progress(spoken, kept, total)
        self.store.forget_others()
        return written

    def speak(self, line: Line) -> None:
        """Stores the line's sound and captions, and its word times if `align` is given; skips what is stored."""
        if line.key not in self.store:
            for attempt in range(TRIES):
                (speech,) = self.model.speak([self._job(line, attempt)], cancel=self.cancel, **line.speaking)
                if speech.wav.numel():
                    break
            else:
                raise ValueError(f"line {line.paragraph.line}: nothing is heard of {line.paragraph.text[:40]!r}; "
                                 "another seed or a longer text may help")
            records = speech.records()
            for record, choice in zip(records, speech.choices):
                record |= {"seed": choice.seed, "tries": choice.tries}
            self.store.keep(line.key, speech.wav[0], self.model.sr, records)
        records = self.store.records(line.key)
        if self.align is not None and not all(record.get("aligner") == self.aligner for record in records):
            wave = self.store.wave(line.key)
            found = [aligned(record["text"], record["samples"], wave, self.align) for record in records]
            timed = [{"words": [word._asdict() for word in words], "aligner": self.aligner} for words in found]
            self.store.note(line.key, [record | times for record, times in zip(records, timed)])

    def assemble(self, lines: Sequence[Line], path: Path, captions: str | None) -> list[Path]:
        """Writes the sound file and its captions, both atomically. Holds one line's sound in memory at a time."""
        records, at = [], 0
        half = self._half(path)
        with whole(_real(path), half), SoundWriter(half, self.model.sr) as file:
            for i, line in enumerate(lines):
                silence = samples(line.paragraph.before) if i else 0
                file.add(np.zeros(silence, np.int16))
                at += silence
                records += [self._placed(record, line, at) for record in self.store.records(line.key)]
                for block in self.store.sound(line.key):
                    file.add(block)
                    at += len(block)
        if captions is None:
            return [path]
        beside = path.with_suffix(f".{captions}")
        text = captioning.written(beside.suffix, records, sample_rate=self.model.sr, seconds=at / self.model.sr)
        write_whole(_real(beside), text.encode())
        return [path, beside]

    def _half(self, path: Path) -> Path:
        """Returns the name of the incomplete file, beside the whole one: only there can it be renamed. A run from
        another work folder, which this one's lock does not keep out, has another name for it."""
        mark = hashlib.blake2b(str(self.store.folder.resolve()).encode(), digest_size=4).hexdigest()
        return _real(path).with_name(f"{path.stem}.{mark}.half{path.suffix}")

    def _placed(self, record: captioning.Record, line: Line, at: int) -> captioning.Record:
        said = {"line": line.paragraph.line} | ({"speaker": line.paragraph.speaker} if line.paragraph.speaker else {})
        place = {"samples": [at + sample for sample in record["samples"]]}
        unsaid = {"aligner"} if self.align is not None else {"aligner", "words"}
        record = {name: value for name, value in record.items() if name not in unsaid}
        return captioning.shifted(record, at / self.model.sr) | place | said

    def _job(self, line: Line, attempt: int = 0) -> Any:
        how = {**line.how, "seeds": line.how["seeds"] + attempt}
        try:
            (job,) = self.model.jobs([line.paragraph.text], **how)
        except ValueError as error:
            raise ValueError(f"paragraph at line {line.paragraph.line}: {error}") from error
        return job


def _real(path: Path) -> Path:
    """Returns the file that is written: a symbolic link stays, and what it points to is replaced."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _report_narrators(cast: Cast) -> None:
    """Warns of names such as "Narrator": unlike "narrator", they do not speak what has no name."""
    for name in cast:
        if name != NARRATOR and name.casefold() == NARRATOR:
            logger.warning("the cast has %r, but lines without a name belong to %r", name, NARRATOR)


def _report_others(output: Path, written: Sequence[Path]) -> None:
    """Warns of files that look like chapters of this book but are of none: they are left, since some may be others'."""
    name = re.compile(rf"{re.escape(output.stem)}-\d{{2,}}{re.escape(output.suffix)}")
    others = [path.name for path in output.parent.iterdir() if name.fullmatch(path.name) and path not in written]
    if others:
        logger.warning("no chapter of this script, perhaps of an earlier run: %s", ", ".join(sorted(others)))
