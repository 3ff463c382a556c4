"""The queueing model against results of queueing theory, and the table that follows from measurements."""

import json
import statistics

import pytest
import queueing
import simulate


def run(speeches, replicas=1, rate=lambda n: 1.0, **how):
    return queueing.simulate(
        speeches, replicas, rate, **{"slots": 16, "first": 0.5, "at_once": 10_000, "queue_size": 10_000} | how
    )


def test_one_speech_has_the_whole_rate():
    (speech,) = run([queueing.Speech(1.0, 4.0)], rate=lambda n: 2.0)
    assert (speech.heard, speech.ended) == pytest.approx((1.25, 3.0))


def test_two_speeches_share_a_rate():
    first, second = run([queueing.Speech(0.0, 4.0), queueing.Speech(2.0, 1.0)])
    assert (first.heard, second.heard) == pytest.approx((0.5, 3.0))
    assert (first.ended, second.ended) == pytest.approx((5.0, 4.0))


def test_the_mean_wait_for_the_only_slot_is_by_pollaczek_and_khinchine():
    """Equal speeches of 1 s at a load of 0.7: load / (2 (1 - load)) seconds."""
    done = run(queueing.poisson(0.7, 200_000, [1.0]), slots=1, first=0.0)
    assert statistics.mean(speech.heard - speech.arrived for speech in done) == pytest.approx(0.7 / 0.6, rel=0.05)


def test_the_mean_time_of_a_speech_is_that_of_processor_sharing():
    """length / (1 - load), for all distributions of the lengths."""
    done = run(queueing.poisson(0.25, 100_000, [1.0, 3.0]), slots=10_000)
    for length in (1.0, 3.0):
        took = statistics.mean(one.ended - one.arrived for one in done if one.seconds == length)
        assert took == pytest.approx(length / 0.5, rel=0.05)


def test_two_replicas_at_twice_the_load_are_faster_than_one():
    done = [run(queueing.poisson(rate, 5_000, [1.0]), replicas) for rate, replicas in ((0.8, 1), (1.6, 2))]
    took = [statistics.mean(speech.ended - speech.arrived for speech in speeches) for speeches in done]
    assert took[1] < took[0]
    assert all(speech.ended == speech.ended for speeches in done for speech in speeches)  # none is nan


def test_only_requests_that_find_replicas_and_queue_full_are_refused():
    done = run([queueing.Speech(0.0, 1.0) for _ in range(10)], 2, at_once=3, queue_size=2)
    assert [speech.refused for speech in done] == [False] * 8 + [True] * 2
    assert all(speech.ended == speech.ended for speech in done[:8])


def test_a_new_speech_gets_more_of_the_rate_until_it_is_heard():
    speeches = [queueing.Speech(0.0, 4.0), queueing.Speech(2.0, 1.0)]
    first, second = run(speeches, first_delay=lambda n: 0.5 if n == 1 else 0.6)
    assert second.heard == pytest.approx(2.6)  # 3.0 with equal shares
    assert (first.ended, second.ended) == pytest.approx((5.0, 3.6))


def test_rates_between_measured_ones_are_on_straight_lines():
    rate = queueing.between({1: 2.0, 4: 5.0, 16: 6.0})
    assert [rate(n) for n in (1, 2, 4, 10, 16, 99)] == pytest.approx([2.0, 3.0, 5.0, 5.5, 6.0, 6.0])


def test_measurements_become_a_table_of_replicas_and_hours(tmp_path, capsys):
    environment = {"kind": "cpu", "cores": 2, "device": "a processor", "threads": 1}
    environment |= {"torch": "2", "commit": "c", "date": "d"}
    answers = [{"at": float(k), "seconds": 2.0, "first": 0.25, "last": 1.0} for k in range(20)]
    one = {
        "environment": environment, "model": "mini", "cpus": 1, "replicas": 1, "rates": {"1": 2.0, "16": 4.0},
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
    assert 25 < replicas[1] < 60  # 100 s of speech a second are asked for, and a replica makes 4 at most
    assert 2500 < replicas[2] < 100 * replicas[1] + 50
    hours = float(plans[2][6].split()[0])
    assert hours == pytest.approx(replicas[2] / (5000 * 2 * 10 * 3600) * 1e6, rel=0.1)
