"""The commands and code of the README run."""

import importlib
import json
import re
import sys

import pytest
from documents import ROOT, blocks, page_names, read, run

README = read(ROOT / "README.md")


def test_the_two_commands_are_those_ci_runs():
    commands = [line.split("#")[0].strip() for line in blocks(README, "bash")[0].splitlines()]
    assert commands == [
        "pip install -e . && python example_optimized_tts.py",
        "pip install -e '.[test]' && python -m pytest",
    ]
    ci = (ROOT / ".ci" / "run").read_text()
    assert "python -m pytest" in ci
    assert "python example_optimized_tts.py" in ci
    assert "'.[test" in ci


def test_it_is_short():
    lines = re.sub(r"<!-- results.*?<!-- /results -->", "", README, flags=re.S).splitlines()
    assert len(lines) <= 100
    lines = README.splitlines()
    assert [line for line in lines if len(line) > 100] == []


def test_its_examples_run_one_after_another(tmp_path, monkeypatch):
    names = run(blocks(README, "python"), page_names(tmp_path, monkeypatch, "tiny"), {"cuda": "cpu"})
    assert len(names["wavs"]) == 2
    assert names["wav"].shape[1] > 0


def test_the_picture_draws_the_ratios_of_the_results():
    """Computed from the files here, not by the code that draws."""
    picture = read(ROOT / "benchmarks" / "results" / "overview.svg")
    measured = set()
    for path in (ROOT / "benchmarks" / "results").glob("comparison-*.json"):
        measured |= {round(found["ratio"], 1) for found in json.loads(read(path))["ratios"]}
    scales = []
    for kind in ("usual", "fast"):
        drawn = [float(text) for text in re.findall(rf'class="{kind}">([\d.]+)x</text>', picture)]
        widths = [float(width) for width in re.findall(rf'<rect class="{kind}" .*?width="([\d.]+)"', picture)]
        assert drawn
        assert set(drawn) <= measured
        assert len(widths) == len(drawn)
        scales += [width / ratio for width, ratio in zip(widths, drawn)]
    assert scales == pytest.approx([scales[0]] * len(scales), rel=0.05)


def test_it_counts_sentences_of_eight_callers_as_they_were_measured():
    (path,) = (ROOT / "benchmarks" / "results").glob("concurrency-tts-mini-*-avx512-bf16-*.json")
    rows = json.loads(read(path))["rows"]
    eight = {r["side"]: round(r["sentences_per_minute"]) for r in rows if (r["mode"], r["callers"]) == ("calls", 8)}
    told = re.search(r"eight threads get (\d+) sentences a minute of the small voice, and got (\d+)", README)
    assert {"now": int(told[1]), "before": int(told[2])} == eight


def test_its_first_sentences_have_the_ranges_of_its_table():
    table = re.search(r"<!-- results:lead -->.*?<!-- /results -->", README, re.S)[0]
    found = {"NVIDIA H200": [], "2 cores": []}
    for device, ratio in re.findall(r"^\| (NVIDIA H200|2 cores) .*?, ([\d.]+)x \|", table, re.M):
        found[device].append(float(ratio))
    gpu, cpu = ([min(ratios), max(ratios)] for ratios in found.values())
    fast = max(float(ratio) for ratio in re.findall(r", ([\d.]+)x \|$", table, re.M))
    words = " ".join(README.split())
    assert f"{gpu[0]} to {gpu[1]} times on an NVIDIA H200, {cpu[0]} to {cpu[1]} times on two CPU cores." in words
    quick = rf'`preset="fast"`, which is .*?, makes that up to {re.escape(str(fast))} times on two cores'
    assert re.search(quick, words)


def test_the_picture_fits_a_screen_beside_the_text():
    height = re.search(r'<svg [^>]*height="(\d+)"', read(ROOT / "benchmarks" / "results" / "overview.svg"))[1]
    assert int(height) <= 420


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
