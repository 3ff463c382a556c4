"""Tables of texts, and what `chatterbox-opt batch` makes of them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

QUICK = {"max_new_tokens": 4, "n_cfm_timesteps": 1}  # a core speaks more than 10 such rows a second


def table(path: Path, rows: list[Any]) -> Path:
    """Writes rows as lines of JSON; strings are lines already."""
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def sounds(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.flac")}


def killed_after(rows: int, words: list[str], folder: Path) -> int:
    """Runs the command and kills it when so many rows are in the manifest. Returns its exit code."""
    run = subprocess.Popen([sys.executable, "-m", "chatterbox_opt", *words], stderr=subprocess.DEVNULL)
    manifest, until = folder / "manifest.jsonl", time.monotonic() + 180
    while run.poll() is None and time.monotonic() < until:
        if manifest.exists() and manifest.read_bytes().count(b"\n") >= rows:
            break
        time.sleep(0.002)
    run.kill()
    return run.wait(60)
