"""What the doctor finds and reports; a check that fails does not stop the others."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from replay import Replay

from chatterbox_opt import OptimizedChatterboxTTS
from chatterbox_opt.cli import main
from chatterbox_opt.doctor import environment, examine, manners, numbers, references, written
from chatterbox_opt.doctor.findings import NOT_HERE, OK, SLOWER, WRONG, Finding
from chatterbox_opt.doctor.patient import Patient, first_difference, off
from chatterbox_opt.engine import first_trial
from chatterbox_opt.options import EngineOptions


@pytest.fixture
def patient():
    made = Patient("cpu", ("mini",), True)
    yield made
    made.close()


def test_the_references_are_what_the_mini_model_says():
    model = references.exact_mini("cpu")
    for case, (tokens, samples) in references.stored().items():
        got, heard = references.spoken(model, case)
        assert (got == tokens).all()
        assert np.abs(heard - samples).max() < 1e-3
    assert references.FILE.stat().st_size < 64_000


def test_another_sound_or_another_token_is_wrong(patient, monkeypatch):
    kept = references.stored()
    tokens, samples = kept["drawn"]
    kept["drawn"] = tokens, samples[::-1].copy()
    tokens, samples = kept["greedy"]
    kept["greedy"] = np.where(np.arange(len(tokens)) == 5, tokens + 1, tokens), samples
    monkeypatch.setattr(references, "stored", lambda: kept)
    found = {f.check: f for f in numbers.stored_references(patient)}
    assert found["references: drawn"].verdict == WRONG
    assert found["references: greedy"].verdict == WRONG
    assert "token 5 of" in found["references: greedy"].text
    assert found["references: sorted"].verdict == OK


def test_a_check_that_raises_is_a_finding_and_the_others_go_on(tmp_path, capsys):
    def broken(patient):
        yield Finding("first half", OK, "fine")
        raise RuntimeError("the device\nis gone")

    def after(patient):
        yield Finding("after", SLOWER, "than it could be", "EngineOptions(kernels=False)")

    document, report = tmp_path / "a.json", tmp_path / "a.md"
    assert examine.examine("cpu", ("mini",), True, document, report, (broken, after)) == 1
    made = json.loads(document.read_text())
    assert [(f["check"], f["verdict"]) for f in made["findings"]] == [
        ("first half", OK), ("broken", WRONG), ("after", SLOWER)
    ]  # fmt: skip
    assert made["verdict"] == WRONG
    assert "RuntimeError: the device is gone" in report.read_text()
    assert "`EngineOptions(kernels=False)`" in report.read_text()
    assert "1 wrong, 1 slower, 1 ok" in capsys.readouterr().out

    def endless(patient):
        yield Finding("endless", WRONG, "no number", figures={"error": math.inf})

    assert examine.examine("cpu", ("mini",), True, document, None, (endless,)) == 1
    (found,) = json.loads(document.read_text(), parse_constant=pytest.fail)["findings"]
    assert found["figures"] == {"error": "Infinity"}
    with pytest.raises(FileNotFoundError):
        examine.examine("cpu", ("mini",), True, tmp_path / "nowhere" / "a.json", None, (pytest.fail,))
    assert examine.examine("cpu", ("mini",), True, checks=(after,)) == 0, "slower is not wrong"


def test_what_no_time_is_left_for_is_named(monkeypatch, capsys):
    monkeypatch.setattr(examine, "SECONDS", {True: 0.0, False: 0.0})
    assert examine.examine("cpu", ("mini",), True) == 0
    assert capsys.readouterr().out.count("no time was left for it") == len(examine.CHECKS)


def test_from_a_shell(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(examine, "CHECKS", ())
    monkeypatch.setattr(examine.examine, "__defaults__", (*examine.examine.__defaults__[:-1], (
        manners.watermark, manners.cancelled, numbers.graphs)))  # fmt: skip
    document = tmp_path / "a.json"
    assert main(["doctor", "--device", "cpu", "--quick", "--json", str(document)]) == 0
    made = json.loads(document.read_text())
    assert [f["verdict"] for f in made["findings"]] == [OK, OK, NOT_HERE]
    assert made["environment"]["torch"] == torch.__version__
    assert {choice["field"] for choice in made["auto"]} >= {"dtype", "compile", "kernels"}
    assert "dtype=" in capsys.readouterr().out


def test_a_stream_and_callers_at_once_are_what_they_should_be(patient):
    assert [f.verdict for f in numbers.in_chunks(patient)] == [OK]
    assert [f.verdict for f in manners.threads(patient)] == [OK]


def test_small_things():
    a = torch.tensor([1, 2, 3])
    assert first_difference(a, a) is None
    assert first_difference(a, a[:2]) == 2
    assert first_difference(a, torch.tensor([1, 5, 3])) == 1
    assert off(torch.ones(3), torch.ones(4)) == float("inf")
    assert written.line(Finding("x", OK, "y")).split() == ["ok", "x", "y"]


# ---- what only a GPU has -------------------------------------------------------------------------

GPU = torch.device("cuda")


class Model:
    pass


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_the_allocator_and_its_settings_are_reported(name, monkeypatch):
    about = SimpleNamespace(major=9, minor=0, total_memory=8e10, multi_processor_count=132)
    for asked, answer in dict(get_device_properties=about, get_device_name="NVIDIA H100", device_count=2,
                              get_allocator_backend="native").items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, asked, lambda *_, answer=answer: answer)
    monkeypatch.setenv(name, "expandable_segments:True")
    facts = environment.facts(GPU)
    assert (facts["allocator"], facts[name]) == ("native", "expandable_segments:True")
    assert f"{name} expandable_segments:True" in written.about({"facts": facts, "choices": []})[0]


def test_what_another_process_did_not_survive_is_wrong(monkeypatch):
    parts = {
        "kernel snake": {"verdict": "crashed", "text": "signal 11"},
        "capture step": {"verdict": "survived", "text": "", "seconds": 2.0},
    }
    monkeypatch.setattr(first_trial, "known", lambda: [{"family": "tts", "when": "now", "parts": parts}])
    (finding,) = numbers.survived(SimpleNamespace(device=GPU, names=()))
    assert finding.verdict == WRONG
    assert "kernel snake crashed (signal 11)" in finding.text
    assert "trial='always'" in finding.switch
    parts["kernel snake"] = {"verdict": "untold", "text": ""}
    (finding,) = numbers.survived(SimpleNamespace(device=GPU, names=()))
    assert finding.verdict == OK
    assert "1 parts survived, in 2 s (now); nothing was heard of 1" in finding.text


@pytest.mark.parametrize(("left", "verdict"), [(300, OK), (301, OK), (400, WRONG)])
def test_workspaces_may_stay_and_models_may_not(left, verdict, monkeypatch):
    """The first model leaves 300 MB allocated; the second must not add to them."""
    readings = iter(mega << 20 for mega in (0, 1300, 300, 300, 1300, left))
    monkeypatch.setattr(manners, "held_bytes", lambda device: next(readings))
    monkeypatch.setattr(manners, "drop_workspaces", lambda device: done.append("workspaces dropped"))
    done: list[str] = []
    patient = SimpleNamespace(device=GPU, load=Model, speak=lambda *args: done.append("spoken"),
                              forget=lambda: done.append("models dropped"))  # fmt: skip
    (finding,) = manners.deleted(patient)
    assert finding.verdict == verdict
    assert finding.figures["took"] == 1000 << 20
    assert done == ["models dropped", "workspaces dropped", *["spoken", "workspaces dropped"] * 2], (
        "a graph may use a workspace"
    )


def test_what_is_captured_is_reported_with_its_numbers():
    model = OptimizedChatterboxTTS.from_mini("cpu", engine=EngineOptions(slots=2))
    line = model.pipeline
    for part in (line.tokens.prompts, line.tokens.step, line.mel.graphs, line.wav):
        part.captured = Replay()
    line.wav.captured.closed = "RuntimeError: not while a stream is being captured"
    line.tokens.step.captured.nodes = {"a": 300, "b": 320}
    patient = SimpleNamespace(model=lambda name: model, speak=lambda *how: line.tokens.reserve(2, 256))
    prefill, step, flow, vocoder = numbers.captures(patient, "mini")
    assert step.text.startswith("0 captured of 300 to 320 nodes; the first takes")
    assert f"warmup(1) captures {len(line.tokens.step.planned(1))}, warmup(16)" in step.text
    assert step.figures["nodes"] == {"a": 300, "b": 320}
    for finding, part in ((prefill, "prefill"), (flow, "flow")):
        assert (finding.check, finding.verdict) == (f"captured {part}: mini", OK)
    assert (vocoder.verdict, vocoder.switch[-17:]) == (WRONG, "('prefill', 'step', 'flow'))"[-17:])
    model.close()


def test_a_model_that_is_kept_is_found(monkeypatch):
    kept = []

    def load():
        kept.append(Model())
        return kept[-1]

    monkeypatch.setattr(manners, "held_bytes", lambda device: 0)
    monkeypatch.setattr(manners, "drop_workspaces", lambda device: None)
    patient = SimpleNamespace(device=GPU, load=load, speak=lambda *args: None, forget=lambda: None)
    (finding,) = manners.deleted(patient)
    assert finding.verdict == WRONG


def test_the_reference_is_spoken_with_numbers_of_the_host(monkeypatch):
    """On a GPU too, or nothing could be compared."""
    drawn = []
    monkeypatch.setattr(references.HostNoise, "normal", lambda self, shape: drawn.append(shape) or torch.zeros(shape))
    references.exact_mini("cpu").tokens_to_wav(torch.arange(9), seed=1)
    assert drawn
