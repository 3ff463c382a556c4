"""What the doctor finds, says and writes, and that no check takes the others with it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from chatterbox_opt.cli import main
from chatterbox_opt.doctor import examine, manners, numbers, references, written
from chatterbox_opt.doctor.findings import NOT_HERE, OK, SLOWER, WRONG, Finding
from chatterbox_opt.doctor.patient import Patient, first_difference, off


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
