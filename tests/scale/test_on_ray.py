"""A table spoken by a Ray cluster: the same files as by one engine, whichever processes die."""

import os
import signal
import subprocess
import sys
import threading
from argparse import Namespace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from batches import QUICK, killed_after, lines, sounds, table

from chatterbox_opt.cli import main
from chatterbox_opt.scale.batch import speak_table
from chatterbox_opt.scale.cluster import Share, range_of_workers, share_of
from chatterbox_opt.scale.on_ray import speak_on_ray
from chatterbox_opt.scale.rows import read_rows
from chatterbox_opt.scale.speaking import speak
from chatterbox_opt.scale.watch import Silence

TEXTS = ["Good.", "Hello there.", "It is fine.", "One.", "We meet at noon.", "Not today."]
ROWS = 500


def mini():
    """Returns a loader of the small voice in float32, where a row sounds the same alone and beside others."""
    from chatterbox_opt import ChatterboxTTS

    return partial(ChatterboxTTS.from_mini, "cpu", use_mixed_precision=False)


def by_workers(number, rows, folder, judge=None, **how):
    share = Share(number, number, 1.0, 0.0)

    def outcomes(left):
        return speak_on_ray(mini(), left, "flac", "auto", lambda nodes: share, judge=judge, **how)

    return speak_table(rows, folder, outcomes, verbose=False)


@pytest.fixture
def by_value():
    """Functions of this file are sent to workers by value, since workers cannot import it."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def dies(marker):
    """Returns a judge that kills its process at the row "kills", and at the row "dies" only once."""

    def judge(row, wave, rate):
        if row.id == "dies" and not os.path.exists(marker):
            open(marker, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        if row.id == "kills":
            os.kill(os.getpid(), signal.SIGKILL)
        return {}

    return judge


@pytest.mark.slow
def test_two_workers_in_a_killed_and_a_continued_run_make_what_one_engine_makes(cluster, tmp_path):
    rows = [{"text": f"Number {i}.", **QUICK} for i in range(ROWS)]
    rows[100:100] = [{"text": ""}, {"text": "This is longer, so it comes first.", "top_p": 7.0}]
    rows += [{"text": "Bad.", "voice": "gone.wav"}]  # the shortest comes last
    words = ["batch", str(table(tmp_path / "in.jsonl", rows)), "--model", "mini", "--device", "cpu"]
    words += ["--preset", "exact"]  # float32, where a row sounds the same whatever is beside it
    two, one = tmp_path / "two", tmp_path / "one"
    on_ray = [*words, "-o", str(two), "--ray", cluster.address, "--workers", "2", "--worker-cpus", "1"]
    killed = killed_after(ROWS // 5, on_ray, two)
    manifest, before_kill = (two / "manifest.jsonl").read_bytes(), sounds(two)
    assert killed == -signal.SIGKILL
    assert manifest.count(b"\n") < ROWS
    assert main(on_ray) == 1  # as some rows fail
    torch.set_num_threads(1)  # as a worker of one core has: sums of float32 depend on their number
    assert main([*words, "-o", str(one)]) == 1

    assert (two / "manifest.jsonl").read_bytes().startswith(manifest[: manifest.rfind(b"\n") + 1])
    made = lines(two / "manifest.jsonl")
    good = [number for number, row in enumerate(rows, 1) if set(row) == {"text", *QUICK}]
    assert sorted(line["id"] for line in made) == [f"{number:07d}" for number in good]  # none twice, none missing
    assert len(good) == ROWS
    by_two, by_one = sounds(two), sounds(one)
    assert by_two.keys() == by_one.keys() == {line["file"] for line in made}
    assert len(set(by_one.values())) == ROWS  # a mix-up of any two would show
    assert [name for name in by_two if by_two[name] != by_one[name]] == []
    assert [name for name in before_kill if before_kill[name] != by_two[name]] == []
    assert records(two) == records(one)
    failures = {line["row"]: line["reason"] for line in lines(two / "failures.jsonl")}
    assert failures == {line["row"]: line["reason"] for line in lines(one / "failures.jsonl")}
    assert len(lines(two / "failures.jsonl")) == 3
    for number, reason in {101: "no text", 102: "top_p", ROWS + 3: "gone.wav"}.items():
        assert reason in failures[number]


def records(folder):
    """Returns the manifest's lines by id, without what differs from run to run."""
    return {line.pop("id"): line | {"seconds": None} for line in lines(folder / "manifest.jsonl")}


@pytest.mark.slow
def test_a_row_that_kills_every_process_fails_and_the_others_are_made(cluster, by_value, tmp_path):
    """One of them killed its process too, but only once."""
    texts = {str(i): text for i, text in enumerate(TEXTS * 2)} | {"dies": "One. Two.", "kills": "One. Two. Three."}
    rows = [{"id": name, "text": text, **QUICK} for name, text in texts.items()]
    rows = read_rows(table(tmp_path / "in.jsonl", rows))
    done = by_workers(2, rows, tmp_path / "out", dies(str(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()
    assert (done.made, done.failed) == (13, 1)
    (failure,) = lines(tmp_path / "out" / "failures.jsonl")
    assert (failure["id"], "process ended" in failure["reason"]) == ("kills", True)
    torch.set_num_threads(1)
    model = mini()()
    others = [row for row in rows if row.id != "kills"]
    speak_table(others, tmp_path / "one", lambda left: speak(model, left, "flac"), verbose=False)
    model.close()
    assert sounds(tmp_path / "out") == sounds(tmp_path / "one")


def hangs_once(marker):
    """Returns a judge that never returns at the row "hangs", but only once."""

    def judge(row, wave, rate):
        if row.id == "hangs" and not os.path.exists(marker):
            open(marker, "w").close()
            threading.Event().wait()
        return {}

    return judge


@pytest.mark.slow
def test_an_engine_that_hangs_is_replaced(cluster, by_value, tmp_path):
    texts = {str(i): text for i, text in enumerate(TEXTS)} | {"hangs": "One. Two."}
    rows = [{"id": name, "text": text, **QUICK} for name, text in texts.items()]
    rows = read_rows(table(tmp_path / "in.jsonl", rows))
    done = by_workers(1, rows, tmp_path / "out", hangs_once(str(tmp_path / "marker")), patience=8.0)
    assert (tmp_path / "marker").exists()
    assert (done.made, done.failed) == (7, 0)


def test_silence_counts_checks_without_progress_while_there_are_calls():
    silence = Silence()
    assert [silence.check(True, 1) for _ in range(3)] == [0, 1, 2]
    assert silence.check(True, 2) == 0
    assert [silence.check(waiting, 2) for waiting in (True, False, True)] == [1, 0, 1]


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
def test_without_an_address_the_cluster_is_this_machine(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    given = table(tmp_path / "in.jsonl", [{"text": "Good."}])
    words = ["batch", str(given), "-o", str(tmp_path / "out"), "--model", "mini", "--device", "cpu", "--ray"]
    done = subprocess.run([sys.executable, "-m", "chatterbox_opt", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(sounds(tmp_path / "out")) == 1


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_reported_in_a_line(cluster, tmp_path, capsys):
    words = ["batch", str(table(tmp_path / "in.jsonl", [{"text": "Good."}])), "-o", str(tmp_path / "out")]
    words += ["--device", "cpu", "--dir", str(tmp_path), "--ray", "auto", "--workers", "1", "--worker-cpus", "1"]
    assert main(words) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("chatterbox-opt: Ray gave up")
    assert str(tmp_path) in message


DEFAULTS = {"ray": "auto", "device": "auto", "workers": None, "worker_cpus": None, "worker_gpus": None}


@pytest.mark.parametrize(
    ("how", "nodes", "share"),
    [
        ({}, [{"CPU": 8.0}, {"CPU": 4.0}, {}], Share(3, 3, 4.0, 0.0)),  # a head node often offers no cores
        ({}, [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0}], Share(2, 2, 1.0, 1.0)),
        ({"device": "cpu"}, [{"CPU": 8.0, "GPU": 2.0}], Share(1, 1, 8.0, 0.0)),
        ({"worker_gpus": 0.5}, [{"CPU": 8.0, "GPU": 1.0}], Share(2, 2, 1.0, 0.5)),
        ({"workers": "1-8", "worker_cpus": 2.0}, [{"CPU": 4.0}], Share(1, 8, 2.0, 0.0)),
        ({"workers": "2"}, [{"CPU": 2.0}], Share(2, 2, 1.0, 0.0)),
        ({"workers": "1-3"}, [{"CPU": 8.0}, {"CPU": 4.0}], Share(1, 3, 4.0, 0.0)),
        ({"workers": "4"}, [{"CPU": 2.0}], Share(4, 4, 1.0, 0.0)),
        ({}, [{}], Share(1, 1, 1.0, 0.0)),  # a cluster that adds nodes on demand
    ],
)
def test_the_share_of_an_engine(how, nodes, share):
    assert share_of(Namespace(**{**DEFAULTS, **how}), nodes) == share


@pytest.mark.parametrize("words", ["0", "-3", "4-2", "many", "1-"])
def test_wrong_numbers_of_workers_are_refused(words):
    with pytest.raises(ValueError, match="workers="):
        range_of_workers(words)


def test_without_the_extra_it_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    given = table(tmp_path / "in.jsonl", [{"text": "Good."}])
    assert main(["batch", str(given), "-o", str(tmp_path / "out"), "--model", "mini", "--ray"]) == 1
    assert "chatterbox-opt[ray]" in capsys.readouterr().err


def test_a_number_of_workers_needs_a_cluster(capsys, tmp_path):
    given = table(tmp_path / "in.jsonl", [{"text": "Good."}])
    assert main(["batch", str(given), "-o", str(tmp_path / "out"), "--model", "mini", "--workers", "2"]) == 1
    assert "--ray" in capsys.readouterr().err
