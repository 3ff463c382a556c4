"""The Markdown pages of the repository, and functions that read and run them."""

from __future__ import annotations

import ast
import importlib
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from chatterbox_opt.weights.files import MINI

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
TOP = [ROOT / name for name in ("README.md", "OPTIMIZATION.md", "CHANGELOG.md", "CONTRIBUTING.md")]
PAGES = [*TOP, *DOCS, ROOT / "benchmarks" / "README.md", ROOT / "chatterbox_opt" / "assets" / "mini" / "README.md"]


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def prose(text: str) -> str:
    """Without code, and without tables that scripts write."""
    return re.sub(r"```.*?```|<!-- results:.*?<!-- /results -->", "", text, flags=re.S)


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def check_imports(code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module != "chatterbox_opt.upstream":
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def page_names(folder: Path, monkeypatch: pytest.MonkeyPatch, weights: str) -> dict[str, Any]:
    """Returns the names that code of the pages uses. The model has `weights` "tiny" or "mini", as from_pretrained()
    has, and speaks a few tokens only; recordings are in the current folder."""
    from chatterbox_opt import EngineOptions, OptimizedChatterboxTTS, options

    def load(*_: Any, device: str = "cpu", **how: Any) -> OptimizedChatterboxTTS:
        make = OptimizedChatterboxTTS.from_mini if weights == "mini" else OptimizedChatterboxTTS.from_random
        return make("cpu", **{"enable_watermark": False, **how})

    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setattr(OptimizedChatterboxTTS, "from_pretrained", load)
    monkeypatch.setattr(OptimizedChatterboxTTS, "defaults", options.SamplingOptions(max_new_tokens=8))
    noise = 0.1 * np.random.default_rng(0).standard_normal(24_000 * 6)
    for name in ("voice.wav", "ref.flac"):
        soundfile.write(folder / name, noise, 24_000)
    (folder / "texts.jsonl").write_text('{"id": "one", "text": "One."}\n{"id": "two", "text": "Two."}\n')
    return {
        "model": load(), "ChatterboxTTS": OptimizedChatterboxTTS, "OptimizedChatterboxTTS": OptimizedChatterboxTTS,
        "EngineOptions": EngineOptions, "Path": Path, "MINI": str(MINI), "text": "Hello.",
        "texts": ["One.", "Two.", "Three."], "long_text": "This goes on for a while. " * 20,
        "play": len, "wake": lambda: None, "event": threading.Event(), "judge": lambda row, wave, rate: {},
    }


def run(codes: list[str], names: dict[str, Any], changes: dict[str, str]) -> dict[str, Any]:
    """Runs the blocks one after another, except those that need chatterbox-tts, with words replaced by `changes`."""
    for code in codes:
        for old, new in changes.items():
            code = code.replace(old, new)
        if "chatterbox_opt.upstream" not in code:
            exec(compile(code, "<page>", "exec"), names)
    return names
