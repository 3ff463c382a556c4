"""A table spoken by a cluster: the same files as by one engine, whoever ends in the middle."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from argparse import Namespace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from chatterbox_opt.cli import main
from chatterbox_opt.scale.batch import speak_table
from chatterbox_opt.scale.cluster import Share, number_of_workers, share_of
from chatterbox_opt.scale.on_ray import speak_on_ray
from chatterbox_opt.scale.rows import read_rows
from chatterbox_opt.scale.speaking import speak
from chatterbox_opt.scale.watch import Silence

TEXTS = ["Good.", "Hello there.", "It is fine.", "One.", "We meet at noon.", "Not today."]


def table(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def sounds(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.flac")}


def mini():
    """The small voice in float32, where a row sounds the same whatever is beside it."""
    from chatterbox_opt import ChatterboxTTS

    return partial(ChatterboxTTS.from_mini, "cpu", use_mixed_precision=False)


def by_workers(number, rows, folder, judge=None, **how):
    share = Share(number, number, 1.0, 0.0)

    def outcomes(left):
        return speak_on_ray(mini(), left, "flac", "auto", lambda nodes: share, judge=judge, **how)

    return speak_table(rows, folder, outcomes, verbose=False)


@pytest.fixture
def by_value():
    """Workers are sent this file's functions whole: they cannot import it."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def dies_once(marker):
    """A judge under which the process of an engine ends, once in all."""

    def judge(row, wave, rate):
        if row.id == "dies" and not os.path.exists(marker):
            open(marker, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return {}

    return judge


@pytest.mark.slow
def test_two_workers_make_what_one_engine_makes_and_tell_what_fails(cluster, tmp_path):
    rows = [{"text": f"{text} {text}" if i % 3 == 0 else text} for i, text in enumerate(TEXTS * 3)]
    rows += [{"text": ""}, {"text": "Bad.", "top_p": 7.0}, {"text": "Bad.", "voice": "gone.wav"}]
    rows = read_rows(table(tmp_path / "in.jsonl", rows))
    two = by_workers(2, rows, tmp_path / "two")
    torch.set_num_threads(1)  # as a worker of one core has: sums of float32 depend on their number
    model = mini()()
    one = speak_table(rows, tmp_path / "one", lambda left: speak(model, left, "flac"), verbose=False)
    model.close()
    assert (two.made, two.failed) == (one.made, one.failed) == (18, 3)
    assert sounds(tmp_path / "two") == sounds(tmp_path / "one")
    told = [
        {line["id"]: {k: v for k, v in line.items() if k != "seconds"} for line in lines(folder / "manifest.jsonl")}
        for folder in (tmp_path / "two", tmp_path / "one")
    ]
    assert told[0] == told[1]
    reasons = [sorted(line["reason"] for line in lines(tmp_path / n / "failures.jsonl")) for n in ("two", "one")]
    assert reasons[0] == reasons[1]


@pytest.mark.slow
def test_a_worker_that_dies_loses_no_row(cluster, by_value, tmp_path):
    rows = [{"text": text, "id": f"{i}"} for i, text in enumerate(TEXTS * 2)] + [{"text": "One. Two.", "id": "dies"}]
    rows = read_rows(table(tmp_path / "in.jsonl", rows))
    done = by_workers(2, rows, tmp_path / "out", dies_once(str(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()
    assert (done.made, done.failed) == (13, 0)
    assert sorted(line["id"] for line in lines(tmp_path / "out" / "manifest.jsonl")) == sorted(row.id for row in rows)


def dies_always(row, wave, rate):
    """A judge under which the process of an engine ends."""
    if row.id == "kills":
        os.kill(os.getpid(), signal.SIGKILL)
    return {}


@pytest.mark.slow
def test_a_row_that_ends_every_process_fails_alone(cluster, by_value, tmp_path):
    rows = [{"text": text, "id": f"{i}"} for i, text in enumerate(TEXTS * 2)] + [{"text": "One. Two.", "id": "kills"}]
    rows = read_rows(table(tmp_path / "in.jsonl", rows))
    done = by_workers(2, rows, tmp_path / "out", dies_always)
    assert (done.made, done.failed) == (12, 1)
    (failure,) = lines(tmp_path / "out" / "failures.jsonl")
    assert (failure["id"], "process ended" in failure["reason"]) == ("kills", True)
    torch.set_num_threads(1)
    model = mini()()
    others = [row for row in rows if row.id != "kills"]
    speak_table(others, tmp_path / "one", lambda left: speak(model, left, "flac"), verbose=False)
    model.close()
    assert sounds(tmp_path / "out") == sounds(tmp_path / "one")


def hangs_once(marker):
    """A judge that does not come back, once in all."""

    def judge(row, wave, rate):
        if row.id == "hangs" and not os.path.exists(marker):
            open(marker, "w").close()
            threading.Event().wait()
        return {}

    return judge


@pytest.mark.slow
def test_an_engine_that_hangs_is_replaced(cluster, by_value, tmp_path):
    rows = [{"text": text, "id": f"{i}"} for i, text in enumerate(TEXTS)] + [{"text": "One. Two.", "id": "hangs"}]
    rows = read_rows(table(tmp_path / "in.jsonl", rows))
    done = by_workers(1, rows, tmp_path / "out", hangs_once(str(tmp_path / "marker")), patience=8.0)
    assert (tmp_path / "marker").exists()
    assert (done.made, done.failed) == (7, 0)


def test_silence_is_of_those_who_wait():
    silence = Silence()
    assert [silence.look(True, 1) for _ in range(3)] == [0, 1, 2]
    assert silence.look(True, 2) == 0
    assert [silence.look(waiting, 2) for waiting in (True, False, True)] == [1, 0, 1]


def test_a_replica_whose_engine_hangs_is_not_healthy():
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    from chatterbox_opt.scale.replica import HEALTH_SECONDS, Replica
    from chatterbox_opt.scale.watch import PATIENCE

    done = {"steps": 1, "sound_seconds": 0.0, "finished": 0, "failed": 0, "cancelled": 0}
    model = SimpleNamespace(stats=lambda: done | {"calls": 1})
    replica = SimpleNamespace(service=SimpleNamespace(model=model), silence=Silence())
    for _ in range(round(PATIENCE / HEALTH_SECONDS)):
        Replica.check_engine(replica)
    with pytest.raises(RuntimeError, match="nothing"):
        Replica.check_engine(replica)
    done["steps"] += 1
    Replica.check_engine(replica)


@pytest.mark.slow
def test_a_killed_run_is_gone_on_with_by_others(cluster, tmp_path):
    rows = [{"text": f"{text} And {i} more."} for i, text in enumerate(TEXTS * 4)]
    words = ["batch", str(table(tmp_path / "in.jsonl", rows)), "-o", str(tmp_path / "out"), "--model", "mini"]
    words += ["--device", "cpu", "--ray", cluster.address, "--workers", "2", "--worker-cpus", "1"]
    run = subprocess.Popen([sys.executable, "-m", "chatterbox_opt", *words], stderr=subprocess.DEVNULL)
    manifest = tmp_path / "out" / "manifest.jsonl"
    until = time.monotonic() + 120
    while run.poll() is None and time.monotonic() < until:
        if manifest.exists() and manifest.read_bytes().count(b"\n") >= 5:
            run.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    assert run.wait(60) == -signal.SIGKILL
    before, there = manifest.read_bytes(), sounds(tmp_path / "out")
    assert main(words) == 0
    assert manifest.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    made = lines(manifest)
    assert sorted(line["id"] for line in made) == [f"{n:07d}" for n in range(1, 25)]
    whole = sounds(tmp_path / "out")
    assert whole.keys() == {line["file"] for line in made}
    assert {name: whole[name] for name in there} == there


@pytest.mark.slow
def test_without_an_address_the_cluster_is_this_machine(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    given = table(tmp_path / "in.jsonl", [{"text": "Good."}])
    words = ["batch", str(given), "-o", str(tmp_path / "out"), "--model", "mini", "--device", "cpu", "--ray"]
    done = subprocess.run([sys.executable, "-m", "chatterbox_opt", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(sounds(tmp_path / "out")) == 1


@pytest.mark.slow
def test_what_no_engine_can_be_made_of_is_told_in_a_line(cluster, tmp_path, capsys):
    words = ["batch", str(table(tmp_path / "in.jsonl", [{"text": "Good."}])), "-o", str(tmp_path / "out")]
    words += ["--device", "cpu", "--dir", str(tmp_path), "--ray", "auto", "--workers", "1", "--worker-cpus", "1"]
    assert main(words) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("chatterbox-opt: Ray gave up")
    assert str(tmp_path) in said


ASKED = {"ray": "auto", "device": "auto", "workers": None, "worker_cpus": None, "worker_gpus": None}


@pytest.mark.parametrize(
    ("how", "nodes", "share"),
    [
        ({}, [{"CPU": 8.0}, {"CPU": 4.0}, {}], Share(3, 3, 4.0, 0.0)),  # a head has often no cores to give
        ({}, [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0}], Share(2, 2, 1.0, 1.0)),
        ({"device": "cpu"}, [{"CPU": 8.0, "GPU": 2.0}], Share(1, 1, 8.0, 0.0)),
        ({"worker_gpus": 0.5}, [{"CPU": 8.0, "GPU": 1.0}], Share(2, 2, 1.0, 0.5)),
        ({"workers": "1-8", "worker_cpus": 2.0}, [{"CPU": 4.0}], Share(1, 8, 2.0, 0.0)),
        ({"workers": "2"}, [{"CPU": 2.0}], Share(2, 2, 1.0, 0.0)),
        ({"workers": "1-3"}, [{"CPU": 8.0}, {"CPU": 4.0}], Share(1, 3, 4.0, 0.0)),
        ({"workers": "4"}, [{"CPU": 2.0}], Share(4, 4, 1.0, 0.0)),
        ({}, [{}], Share(1, 1, 1.0, 0.0)),  # of a cluster that grows when it is asked
    ],
)
def test_what_an_engine_gets_of_a_cluster(how, nodes, share):
    assert share_of(Namespace(**{**ASKED, **how}), nodes) == share


@pytest.mark.parametrize("words", ["0", "-3", "4-2", "many", "1-"])
def test_numbers_of_workers_that_are_none(words):
    with pytest.raises(ValueError, match="workers="):
        number_of_workers(words)


def test_without_the_extra_it_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    given = table(tmp_path / "in.jsonl", [{"text": "Good."}])
    assert main(["batch", str(given), "-o", str(tmp_path / "out"), "--model", "mini", "--ray"]) == 1
    assert "chatterbox-opt[ray]" in capsys.readouterr().err


def test_a_number_of_workers_belongs_to_a_cluster(capsys, tmp_path):
    given = table(tmp_path / "in.jsonl", [{"text": "Good."}])
    assert main(["batch", str(given), "-o", str(tmp_path / "out"), "--model", "mini", "--workers", "2"]) == 1
    assert "--ray" in capsys.readouterr().err
