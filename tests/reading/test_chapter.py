"""A chapter by the small model from end to end, judged by its word error rate."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import metrics
import pytest
import soundfile

from chatterbox_opt import OptimizedChatterboxTTS, read_aloud

WHOLE = 0.03  # by how much the word error rate of the whole may exceed that of its pieces
FEW = 0.06  # the same where a sentence heard otherwise is as much already
WORDS = 0.35  # of the pieces: what the small model is allowed anywhere
RATE = 24_000


def chapter(words: int) -> str:
    """Writes sentences outside of the training set, in paragraphs of three, under headings."""
    text, count, lines = ["Chapter 1"], 2, iter(metrics.SENTENCES * (1 + words // 500))
    while count < words:
        sentences = [next(lines) for _ in range(3)]
        text.append(" ".join(sentences))
        count += len(text[-1].split())
    return "\n\n".join(text)


def heard_as_written(words: int, folder: Path, listener, more: float) -> None:
    script = folder / "chapter.txt"
    script.write_text(chapter(words))
    out, notes = read_aloud(OptimizedChatterboxTTS.from_mini(), script, folder / "chapter.flac", captions="json")
    pieces = json.loads(notes.read_text())["pieces"]
    wav, _ = soundfile.read(out, dtype="float32")
    said = [(p["text"], listener.hear(wav[slice(*p["samples"])], RATE)) for p in pieces]
    apart = metrics.word_error_rate(said)
    assert " ".join(p["text"] for p in pieces).split() == script.read_text().split(), "nothing skipped or said twice"
    together = metrics.word_error_rate([(script.read_text(), heard_together(wav, pieces, listener))])
    print(f"\n{len(wav) / RATE:.0f} s, word error rate of the pieces {apart:.3f}, of the whole {together:.3f}")
    assert apart <= WORDS, "what is heard between a caption's times is its text"
    assert together <= apart + more


def heard_together(wav, pieces: list[dict], listener) -> str:
    """Transcribes the file in stretches that fit Whisper, cut in the silence between paragraphs."""
    cuts, last = [0], 0
    for before, after in itertools.pairwise(pieces):
        silence = after["samples"][0] - before["samples"][1]
        if silence > RATE // 2 and after["samples"][0] - last > 20 * RATE:
            last = before["samples"][1] + silence // 2
            cuts.append(last)
    return " ".join(listener.hear(wav[a:b], RATE) for a, b in zip(cuts, [*cuts[1:], len(wav)]))


def test_a_chapter_is_heard_as_it_is_written(tmp_path, listener):
    heard_as_written(200, tmp_path, listener, FEW)


@pytest.mark.slow
def test_a_long_chapter_is_heard_as_it_is_written(tmp_path, listener):
    heard_as_written(700, tmp_path, listener, WHOLE)


def paragraphs(work):
    """Returns name -> time of the paragraphs that are complete."""
    return {p.name: p.stat().st_mtime_ns for p in work.glob("*.json") if not p.name.startswith("book-")}


def test_a_process_that_is_killed_goes_on_to_the_same_bytes(tmp_path):
    """With the shell command and SIGKILL, at random moments."""
    script = tmp_path / "a.txt"
    script.write_text("\n\n".join(metrics.SENTENCES[:3]))

    def read(name: str, after: float | None = None) -> int:
        command = ["read", str(script), "--model", "mini", "--device", "cpu", "--captions", "srt"]
        command = [sys.executable, "-m", "chatterbox_opt", *command, "-o", str(tmp_path / name)]
        run = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        kept = tmp_path / f"{name}.work"
        if after is not None:
            until = time.monotonic() + 120
            while run.poll() is None and not paragraphs(kept) and time.monotonic() < until:
                time.sleep(0.05)
            time.sleep(after)
            os.kill(run.pid, signal.SIGKILL)
        return run.wait()

    assert read("whole.wav") == 0
    assert read("cut.wav", random.Random(1).uniform(0, 0.5)) == -signal.SIGKILL
    assert not (tmp_path / "cut.wav").exists()
    before = paragraphs(tmp_path / "cut.wav.work")
    assert read("cut.wav") == 0
    assert before
    after = paragraphs(tmp_path / "cut.wav.work")
    assert before.items() <= after.items(), "what was spoken is not spoken again"
    for kind in ("wav", "srt"):
        assert (tmp_path / f"cut.{kind}").read_bytes() == (tmp_path / f"whole.{kind}").read_bytes()
