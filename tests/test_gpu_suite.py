"""The suite for GPUs, run with imitations, so that on a GPU no part fails because of a mistyped option."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import report

from chatterbox_opt.cli import main as command

ROOT = Path(__file__).parents[1]

STAND_IN = """#!/bin/sh
for word; do printf '%s\\037' "$word"; done >> "$CALLS"
printf '\\n' >> "$CALLS"
case "$*" in *ladder.py*) exit 3;; esac
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """Returns (the finished script, the arguments of each python3 that it started, its folder of results)."""
    folder = tmp_path_factory.mktemp("suite")
    for name in ("python3", "nvidia-smi"):
        (folder / name).write_text(STAND_IN)
        (folder / name).chmod(0o755)
    env = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "CALLS": str(folder / "calls")}
    script, out = str(ROOT / "benchmarks" / "gpu_suite.sh"), folder / "out"
    done = subprocess.run(
        ["bash", script, "-", str(out), "--minutes", "2", "--device", "cpu", "--pack", str(folder / "all.tar.gz")],
        env=env, capture_output=True, text=True,
    )  # fmt: skip
    calls = [line.split("\037")[:-1] for line in (folder / "calls").read_text().splitlines()]
    return done, [call for call in calls if call], out


class Parsed(Exception):
    pass


def test_every_part_is_run_and_one_that_fails_leaves_the_others_alone(suite):
    done, calls, out = suite
    summary = (out / "summary.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in summary] == [
        "doctor", "comparison-tts", "inference-tts", "comparison-turbo", "ladder-tts", "tests", "quality-tts",
        "inference-turbo", "comparison-nano",
    ]  # fmt: skip
    assert len(calls) == len(summary)
    assert [line for line in summary if "status 0" not in line] == [line for line in summary if "ladder" in line]
    assert done.returncode == 1
    assert (out.parent / "all.tar.gz").stat().st_size


def test_benchmarks_and_doctor_know_their_options(suite, monkeypatch):
    def parse(parser, argv):
        parsed.append(parser.parse_args(argv))  # exits where an option is unknown
        raise Parsed

    parsed: list = []
    monkeypatch.setattr(report, "parse", parse)
    _, calls, out = suite
    scripts = [call for call in calls if call[0].startswith("benchmarks/")]
    assert len(scripts) == 7
    for name, *options in scripts:
        with pytest.raises(Parsed):
            import_module(Path(name).stem).main(options)
        assert parsed[-1].device == "cpu"
        assert parsed[-1].out == out
    asked: list = []
    monkeypatch.setattr("chatterbox_opt.doctor.examine.examine", lambda *how: asked.append(how) or 0)
    (doctor,) = (call[2:] for call in calls if call[:2] == ["-m", "chatterbox_opt"])
    assert command(doctor) == 0
    assert asked == [("cpu", (), True, out / "doctor.json", out / "doctor.md")]


def test_tests_for_a_gpu_are_found_and_need_no_other_file(suite):
    (tests,) = (call[2:] for call in suite[1] if call[:2] == ["-m", "pytest"])
    files = {word for word in tests if word.startswith("tests/")}
    assert files == {
        str(file.relative_to(ROOT)) for file in ROOT.glob("tests/**/test_*.py")
        if "\n@pytest.mark.gpu\n" in file.read_text()
    }  # fmt: skip
    found = subprocess.run(
        [sys.executable, "-m", "pytest", *tests, "--collect-only", "-q"], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout
    assert "test_kernels.py" in found.stdout
