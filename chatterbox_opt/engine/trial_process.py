"""The parent's side of a trial in a child process: starts it, reads its verdict on each part, ends it in time."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, NamedTuple

PART_SECONDS = 120.0  # limit of one part, which includes compilation and capture
START_SECONDS = 90.0  # limit until a child's first part: imports and the device's context
ALL_SECONDS = 240.0  # after this no further child is started
SURVIVED, CRASHED, HUNG, UNTOLD = "survived", "crashed", "hung", "untold"
FATAL = (CRASHED, HUNG)
CODE = "from chatterbox_opt.engine.trial_child import main; main()"


class End(NamedTuple):
    """How a child ended early."""

    part: str | None  # that was running
    verdict: str
    text: str


def why_no_child() -> str | None:
    """Returns why no child can be started, if so. In a frozen program, or one that embeds Python, the executable would
    start the program itself again."""
    if getattr(sys, "frozen", False) or not Path(sys.executable or "").stem.lower().startswith(("python", "pypy")):
        return f"{sys.executable or 'this program'} is no Python interpreter that could be started"
    return None


def in_child(job: dict[str, Any]) -> tuple[dict[str, Any], End | None]:
    """Returns the child's verdicts on the parts of `job`, and how it ended if it ended early."""
    places = [place for place in sys.path if isinstance(place, str)]  # imports pass over all others, such as a Path
    code = f"import sys; sys.path[:] = {places!r}\n{CODE}"
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as given:
        pickle.dump(job, given)
        given.seek(0)
        try:
            child = subprocess.Popen(
                [sys.executable, "-c", code], stdin=given, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8"
            )
        except OSError as problem:
            return {}, End(None, CRASHED, str(problem))
        try:
            return followed(child, errors)
        finally:
            child.kill()
            child.wait()
            child.stdout.close()


def followed(child: subprocess.Popen, errors: Any) -> tuple[dict[str, Any], End | None]:
    done: dict[str, Any] = {}
    begun, hung = None, threading.Event()

    def give_up() -> None:
        hung.set()
        child.kill()

    def watched(seconds: float) -> threading.Timer:
        timer = threading.Timer(seconds, give_up)
        timer.daemon = True
        timer.start()
        return timer

    watch = watched(START_SECONDS)
    try:
        for line in child.stdout:
            watch.cancel()
            watch = watched(PART_SECONDS)
            said = json.loads(line)
            begun = said["part"] if said["verdict"] == "begun" else None
            if begun is None:
                done[said["part"]] = {name: said[name] for name in ("verdict", "text", "seconds")}
        status = child.wait()
    except ValueError:  # the line is incomplete
        status = child.wait()
    finally:
        watch.cancel()
    if hung.is_set():
        return done, End(begun, HUNG, f"no end within {PART_SECONDS if begun or done else START_SECONDS:.0f} s")
    if status == 0:
        return done, None
    how = f"signal {-status}" if status < 0 else f"status {status}"
    return done, End(begun, CRASHED, ": ".join(filter(None, [how, last_line(errors)])))


def last_line(errors: Any) -> str:
    errors.seek(0, os.SEEK_END)
    errors.seek(max(0, errors.tell() - 2000))
    return (errors.read().decode(errors="replace").strip().split("\n") or [""])[-1][:200]
