"""The queueing model, where theory has an answer, and the way from measurements to a plan."""

import json
import statistics
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import queueing
import simulate


def run(speeches, replicas=1, rate=lambda n: 1.0, **how):
    return queueing.simulate(
        speeches, replicas, rate, **{"slots": 16, "first": 0.5, "at_once": 10_000, "queue": 10_000} | how
    )


def test_one_speech_takes_what_it_takes():
    (one,) = run([queueing.Speech(1.0, 4.0)], rate=lambda n: 2.0)
    assert (one.heard, one.ended) == pytest.approx((1.25, 3.0))


def test_two_speeches_share_a_rate():
    one, two = run([queueing.Speech(0.0, 4.0), queueing.Speech(2.0, 1.0)])
    assert (one.heard, two.heard) == pytest.approx((0.5, 3.0))
    assert (one.ended, two.ended) == pytest.approx((5.0, 4.0))


def test_waiting_in_line_is_as_long_as_pollaczek_and_khinchine_say():
    """One place, equal speeches of 1 s, at a load of 0.7: load / (2 (1 - load)) seconds on the average."""
    done = run(queueing.poisson(0.7, 200_000, [1.0]), slots=1, first=0.0)
    assert statistics.mean(one.heard - one.arrived for one in done) == pytest.approx(0.7 / 0.6, rel=0.05)


def test_sharing_takes_as_long_as_processor_sharing_does():
    """Whatever the lengths are: length / (1 - load)."""
    done = run(queueing.poisson(0.25, 100_000, [1.0, 3.0]), slots=10_000)
    for length in (1.0, 3.0):
        took = statistics.mean(one.ended - one.arrived for one in done if one.seconds == length)
        assert took == pytest.approx(length / 0.5, rel=0.05)


def test_two_replicas_do_twice_as_much():
    done = [run(queueing.poisson(rate, 5_000, [1.0]), replicas) for rate, replicas in ((0.8, 1), (1.6, 2))]
    took = [statistics.mean(one.ended - one.arrived for one in some) for some in done]
    assert took[1] < took[0]  # and a little better than apart
    assert all(one.ended == one.ended for some in done for one in some)


def test_who_finds_every_place_taken_is_sent_away_and_nobody_else():
    done = run([queueing.Speech(0.0, 1.0) for _ in range(10)], 2, at_once=3, queue=2)
    assert [one.refused for one in done] == [False] * 8 + [True] * 2
    assert all(one.ended == one.ended for one in done[:8])


def test_a_new_speech_is_hurried_to_its_first_sound_at_the_others_cost():
    speeches = [queueing.Speech(0.0, 4.0), queueing.Speech(2.0, 1.0)]
    one, two = run(speeches, soon=lambda n: 0.5 if n == 1 else 0.6)
    assert two.heard == pytest.approx(2.6)  # in place of 3.0
    assert (one.ended, two.ended) == pytest.approx((5.0, 3.6))


def test_rates_between_those_that_were_measured():
    rate = queueing.between({1: 2.0, 4: 5.0, 16: 6.0})
    assert [rate(n) for n in (1, 2, 4, 10, 16, 99)] == pytest.approx([2.0, 3.0, 5.0, 5.5, 6.0, 6.0])


def test_from_measurements_to_a_plan(tmp_path, capsys):
    where = {"kind": "cpu", "cores": 2, "device": "a processor", "threads": 1, "torch": "2", "commit": "c", "date": "d"}
    answers = [{"at": float(k), "seconds": 2.0, "first": 0.25, "last": 1.0} for k in range(20)]
    one = {
        "environment": where, "model": "mini", "cpus": 1, "replicas": 1, "rates": {"1": 2.0, "16": 4.0},
        "soon": {"1": 0.25, "16": 1.0}, "rate": 1.0, "lengths": [2.0], "characters": 10.0, "answers": answers,
    }
    (tmp_path / "one.json").write_text(json.dumps(one))
    assert simulate.main([str(tmp_path / "one.json"), "--every", "20", "--within", "1", "--price", "0.5"]) == 0
    lines = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    table = {cells[0].strip() + cells[3]: [cell.strip() for cell in cells] for cells in lines if len(cells) > 3}
    assert table["1 simulated "][4:] == table["1 measured "][4:]
    plans = [[cell.strip() for cell in cells] for cells in lines if len(cells) == 7][2:]
    assert [cells[0] for cells in plans] == ["10", "1,000", "100,000"]
    replicas = [int(cells[2].replace(",", "")) for cells in plans]
    assert replicas[0] == 1
    assert 25 < replicas[1] < 60  # 100 s of speech a second are asked for, and one makes 4 at most
    assert 2500 < replicas[2] < 100 * replicas[1] + 50
    hours = float(plans[2][6].split()[0])
    assert hours == pytest.approx(replicas[2] / (5000 * 2 * 10 * 3600) * 1e6, rel=0.1)
