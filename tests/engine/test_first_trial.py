"""What crashes on a device is found by a child process, recorded, and never run in the process that speaks."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys

import pytest
import torch
from replay import Replay

from chatterbox_opt import files
from chatterbox_opt.config import tiny
from chatterbox_opt.engine import first_trial, flow_graphs, prefill_graphs, step, trial_child, trial_process, wav
from chatterbox_opt.engine.trial_process import CRASHED, HUNG, SURVIVED, UNTOLD
from chatterbox_opt.options import CAPTURES, EngineOptions

CPU = torch.device("cpu")
CONFIG = tiny("tts")
HERE = EngineOptions.exact(compile="cudagraph", trial="here")  # on a CPU the step runs as a capture would
FIRST = HERE.replace(trial="first")
ALL = [f"capture {name}" for name in CAPTURES]

# in place of the child: writes the same messages, and in the named part does what is asked for
FAULTY = """
import os, signal, sys, time, pickle, json
for part in pickle.load(sys.stdin.buffer)["parts"]:
    print(json.dumps(dict(part=part, verdict="begun")), flush=True)
    if part == {part!r}:
        {fault}
    print(json.dumps(dict(part=part, verdict="survived", text="", seconds=0.1)), flush=True)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(first_trial, "_known", {})
    return tmp_path / "chatterbox_opt"


@pytest.fixture
def starts(monkeypatch):
    """Returns the children that are started."""
    plain, seen = trial_process.in_child, []

    def counted(job):
        seen.append(job)
        return plain(job)

    monkeypatch.setattr(trial_process, "in_child", counted)
    return seen


def child_with_fault(monkeypatch, part: str = "none", fault: str = "pass") -> None:
    monkeypatch.setattr(trial_process, "CODE", FAULTY.format(part=part, fault=fault))


def restart(monkeypatch) -> None:
    monkeypatch.setattr(first_trial, "_known", {})


def surviving(options=FIRST):
    return first_trial.surviving_options(options, CPU, CONFIG)


# ---- the child as it is --------------------------------------------------------------------------


def test_a_child_runs_every_part_and_the_next_start_needs_none(starts, folder, monkeypatch, caplog):
    assert surviving() == FIRST
    (file,) = folder.iterdir()
    kept = json.loads(file.read_text())
    assert {part: found["verdict"] for part, found in kept["parts"].items()} == dict.fromkeys(ALL, SURVIVED)
    assert not any(found["text"] for found in kept["parts"].values()), "a part raised"
    assert kept["torch"] == torch.__version__
    restart(monkeypatch)
    assert surviving() == FIRST
    assert len(starts) == 1
    assert not caplog.records


def test_a_child_starts_whatever_stands_on_the_path_of_imports(starts, folder, monkeypatch):
    """As a pathlib.Path, which imports pass over."""
    monkeypatch.setattr(sys, "path", [folder, *sys.path])
    surviving(FIRST.replace(captures=("step",)))
    assert len(starts) == 1
    (verdict,) = first_trial.known()
    assert verdict["parts"]["capture step"]["verdict"] == SURVIVED


@pytest.mark.parametrize("family", ["tts", "turbo"])
def test_a_child_captures_every_part(family, monkeypatch):
    made = []

    def replaying(mode, device, stream=None, **how):
        made.append(Replay(**how))
        made[-1]._seconds = lambda run: (run(), 1.0)[1]
        return made[-1]

    for module in (prefill_graphs, step, flow_graphs, wav):
        monkeypatch.setattr(module, "Captured", replaying)
    monkeypatch.setattr(wav, "SIZES", (64,))
    monkeypatch.setattr(flow_graphs, "sizes", lambda step: (48,))
    for part in ALL:
        trial_child.run(part, FIRST, CPU, tiny(family))
        assert made[-1].keys, part
        assert made[-1].closed is None, part


def test_a_shallow_model_has_every_width():
    full, few = tiny("tts"), trial_child.shallow(tiny("tts"))
    assert few.hift == full.hift
    assert (few.t3.dim, few.t3.heads, few.t3.ff) == (full.t3.dim, full.t3.heads, full.t3.ff)
    assert (few.t3.layers, few.flow.mid_blocks) == (1, 1)


# ---- children that fail --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "verdict", "why"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", CRASHED, "signal 11"),
        ("os.abort()", CRASHED, "signal 6"),
        ("raise RuntimeError('CUDA error: an illegal memory access was encountered')", CRASHED, "illegal memory"),
        ("time.sleep(600)", HUNG, "no end within 2 s"),
    ],
    ids=["segfault", "abort", "illegal access", "hang"],
)
def test_captures_that_end_a_child_are_left_out(fault, verdict, why, starts, folder, monkeypatch, caplog):
    monkeypatch.setattr(trial_process, "PART_SECONDS", 2.0)
    child_with_fault(monkeypatch, "capture flow", fault)
    got = surviving()
    assert got.captures == ("prefill", "step", "vocoder")
    assert got.replace(captures=True) == FIRST, "nothing else has changed"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for text in (f"capture flow {verdict}", why, "trial='always'"):
        assert text in record.getMessage()
    assert [job["parts"] for job in starts] == [ALL, ["capture vocoder"]]
    assert starts[1]["options"].captures == ("prefill", "step", "vocoder"), "it takes no second child with it"
    (file,) = folder.iterdir()
    assert json.loads(file.read_text())["parts"]["capture flow"]["verdict"] == verdict
    restart(monkeypatch)
    caplog.clear()
    assert surviving() == got
    assert len(starts) == 2, "the verdict was kept"
    assert len(caplog.records) == 1, "and is told at every start"


def test_always_tries_again(starts, monkeypatch):
    child_with_fault(monkeypatch, "capture step", "os.abort()")
    assert surviving().captures == ("prefill", "flow", "vocoder")
    child_with_fault(monkeypatch)
    restart(monkeypatch)
    always = FIRST.replace(trial="always")
    assert surviving(always) == always
    assert surviving(always) == always
    assert len(starts) == 3, "once a process"
    restart(monkeypatch)
    assert surviving() == FIRST, "what was found last counts"


@pytest.mark.parametrize(
    "code", ["raise SystemExit('no context')", "import time; time.sleep(600)", "print('{\"part')"],
    ids=["dies", "hangs", "half a line"],
)  # fmt: skip
def test_a_child_that_fails_before_its_first_part_gives_no_verdict(code, starts, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(trial_process, "START_SECONDS", 1.0)
    monkeypatch.setattr(trial_process, "CODE", code)
    assert surviving() == FIRST
    assert "this one goes on alone" in caplog.text
    (verdict,) = first_trial.known()
    assert {found["verdict"] for found in verdict["parts"].values()} == {UNTOLD}
    restart(monkeypatch)
    surviving()
    assert len(starts) == 1


@pytest.mark.parametrize("program", ["", "/usr/bin/uwsgi", "/opt/app/speaker"])
def test_without_an_interpreter_no_child_is_started(program, starts, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sys, "executable", program)
    assert surviving() == FIRST
    assert len(caplog.records) == 1
    assert not starts


def test_a_system_that_refuses_processes(starts, monkeypatch):
    def refuse(*args, **how):
        raise OSError("no more processes")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert surviving() == FIRST


def test_a_folder_that_cannot_be_written(starts, folder, monkeypatch, caplog):
    child_with_fault(monkeypatch)
    folder.write_text("a file in its place")
    assert surviving() == FIRST
    assert "cannot be kept" in caplog.text
    assert surviving() == FIRST
    assert len(starts) == 1, "this process remembers"


def test_a_full_disk_leaves_no_part_of_a_verdict(starts, folder, monkeypatch, caplog):
    child_with_fault(monkeypatch)

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_sync", full)
    assert surviving() == FIRST
    assert "cannot be kept" in caplog.text
    assert not list(folder.iterdir())


def test_a_damaged_verdict_is_replaced(starts, folder, monkeypatch):
    child_with_fault(monkeypatch)
    surviving()
    (file,) = folder.iterdir()
    for text in ("{", "[]", '{"device": "x", "parts": {"capture step": "crashed"}}'):
        file.write_text(text)
        restart(monkeypatch)
        assert surviving() == FIRST
        assert json.loads(file.read_text())["parts"].keys() == set(ALL)
    assert len(starts) == 4


# ---- whose verdict it is -------------------------------------------------------------------------


def test_verdicts_depend_on_model_precision_and_torch(monkeypatch):
    def name(options=FIRST, config=CONFIG):
        return first_trial.name_of(first_trial.described(options, CPU, config))

    names = {name(), name(FIRST.replace(quantize="int8")), name(FIRST.replace(dtype="bfloat16")),
             name(config=tiny("turbo")), name(config=dataclasses.replace(CONFIG, hift=tiny("tts").hift.__class__()))}
    monkeypatch.setattr(torch, "__version__", "9.9")
    names.add(name())
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    names.add(name())
    assert len(names) == 7
    assert name(FIRST.replace(slots=4)) in names, "what no kernel sees does not matter"


def test_a_child_has_the_programs_allocator_settings(folder, monkeypatch):
    """The child has the same settings, and a verdict holds for these only."""
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    said = "json.dumps(dict(part=part, verdict='survived', text=os.environ['PYTORCH_CUDA_ALLOC_CONF'], seconds=0))"
    child_with_fault(monkeypatch, "capture flow", f"print({said}, flush=True); continue")
    surviving()
    (file,) = folder.iterdir()
    kept = json.loads(file.read_text())
    assert kept["parts"]["capture flow"]["text"] == kept["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024", "550.54.15"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build", "570.86.15"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.82", "580.82"),
    ],
    ids=["proprietary", "open", "Arm"],
)
def test_the_drivers_version_is_read(line, version, monkeypatch):
    monkeypatch.setattr(first_trial.Path, "read_text", lambda self: line)
    first_trial.driver.cache_clear()
    try:
        assert first_trial.driver() == version
    finally:
        first_trial.driver.cache_clear()


def test_no_child_is_started_where_nothing_can_crash(starts):
    for options in (HERE, HERE.replace(trial="off"), FIRST.replace(compile=None), FIRST.replace(captures=())):
        assert surviving(options) == options
    assert first_trial.usable_options(FIRST, CPU, CONFIG) == FIRST, "a CPU has no use for it"
    assert not starts


def test_parts_wanted_later_are_tried_later(starts, monkeypatch):
    child_with_fault(monkeypatch)
    surviving(FIRST.replace(captures=("step",)))
    surviving()
    others = [part for part in ALL if part != "capture step"]
    assert [job["parts"] for job in starts] == [["capture step"], others]


def test_a_later_child_leaves_out_known_crashes(starts, monkeypatch):
    child_with_fault(monkeypatch, "capture step", "os.abort()")
    surviving(FIRST.replace(captures=("step",)))
    surviving()
    assert starts[-1]["options"].captures == ("prefill", "flow", "vocoder")
