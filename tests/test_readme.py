"""What the README says can be done is done here."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_the_two_commands_are_those_ci_runs():
    commands = [line.split("#")[0].strip() for line in blocks("bash")[0].splitlines()]
    assert commands == [
        "pip install -e . && python example_optimized_tts.py",
        "pip install -e '.[test]' && python -m pytest",
    ]
    ci = (ROOT / ".ci" / "run").read_text()
    assert "python -m pytest" in ci
    assert "python example_optimized_tts.py" in ci
    assert "'.[test" in ci


@pytest.mark.parametrize("code", blocks("python"))
def test_python_parses_and_its_imports_exist(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module != "chatterbox_opt.upstream":
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)


def test_the_calls_of_the_readme(tmp_path):
    """The block of calls upstream has not, run on a tiny model."""
    import numpy as np
    import soundfile

    from chatterbox_opt import EngineOptions, OptimizedChatterboxTTS

    (code,) = [b for b in blocks("python") if "generate_batch" in b]
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "ref.flac", 0.1 * rng.standard_normal(24_000 * 6), 24_000)
    code = code.replace('"ref.', f'"{(tmp_path / "ref").as_posix()}.')
    import threading

    model = OptimizedChatterboxTTS.from_random(engine=EngineOptions(), enable_watermark=False)
    original = type(model).defaults
    try:
        type(model).defaults = type(original)(max_new_tokens=6)
        names = {
            "model": model, "text": "Hello.", "texts": ["One.", "Two.", "Three."], "event": threading.Event(),
            "play": len, "long_text": "This goes on for a while. " * 20,
        }
        exec(code.replace("max_new_tokens=500", "max_new_tokens=6"), names)
    finally:
        type(model).defaults = original
    assert len(names["wavs"]) == 3
    assert names["speech"].stops
    assert (tmp_path / "ref.pt").is_file()


def test_every_file_the_tree_names_exists():
    tree = re.search(r"## The tree\n\n```\n(.*?)```", README, re.S)[1]
    for name in re.findall(r"[\w/]+\.py|\w+/", tree):
        inside = ROOT / "chatterbox_opt" / name
        assert inside.exists() or (ROOT / name).exists(), name


def test_the_tables_are_those_of_the_results():
    done = subprocess.run(
        [sys.executable, "benchmarks/check_results.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_example_runs_on_a_tiny_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    example = importlib.import_module("example_optimized_tts")
    from chatterbox_opt import OptimizedChatterboxTTS

    real = OptimizedChatterboxTTS.from_random
    monkeypatch.setattr(OptimizedChatterboxTTS, "from_random", lambda device, size, **how: real(device, "tiny", **how))
    monkeypatch.setattr(sys, "argv", ["example", "--weights", "random", "--device", "cpu"])
    example.main()
    assert {p.name for p in tmp_path.glob("*.wav")} >= {"test-1.wav", "batch-1.wav", "batch-2.wav", "long.wav"}
