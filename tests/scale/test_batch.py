"""`chatterbox-opt batch`: what is in the output folder in the end, in one run or in several that were killed."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import soundfile
from batches import QUICK, killed_after, lines, sounds, table
from serving import load_tiny, recording
from threads import soon

from chatterbox_opt.cli import main
from chatterbox_opt.scale import speaking
from chatterbox_opt.scale.batch import speak_table
from chatterbox_opt.scale.rows import read_rows
from chatterbox_opt.scale.speaking import Failed, speak
from chatterbox_opt.scale.writing import PACKINGS
from chatterbox_opt.text.pronounce import Pronunciations

WORDS = ["--model", "mini", "--device", "cpu"]
TEXTS = ["Good.", "Hello there.", "The weather is fine.", "I would like to go out.", "One.", "We meet at noon."]


@pytest.fixture(scope="module")
def model():
    model = load_tiny()
    yield model
    model.close()


def speak_into(model, rows, folder, **how):
    return speak_table(rows, folder, lambda left: speak(model, left, how.get("kind", "flac")), verbose=False, **how)


def test_a_table_with_a_voice_a_row_keeps_few_of_them(model, tmp_path, monkeypatch):
    monkeypatch.setattr(speaking, "MOST_VOICES", 2)
    speeches = speaking._InFlight(model, "flac", None, None, None)
    paths = [tmp_path / f"{i}.wav" for i in range(4)]
    for i, path in enumerate(paths):
        path.write_bytes(recording(2.0, seed=i))
        speeches.voice(str(paths[0]))
        speeches.voice(str(path))
    assert list(speeches.voices) == [str(paths[0]), str(paths[3])], "the last used"
    speeches.pool.shutdown()


def test_a_row_becomes_the_sound_of_generate_and_a_line_of_the_manifest(tmp_path, capsys):
    from chatterbox_opt import ChatterboxTTS

    rows = [{"text": text, "id": f"of/{i}", "seed": i} for i, text in enumerate(TEXTS[:3])]
    given = table(tmp_path / "in.jsonl", rows)
    assert main(["batch", str(given), "-o", str(tmp_path / "out"), "--format", "wav", *WORDS]) == 0
    assert "3 made" in capsys.readouterr().out
    alone = ChatterboxTTS.from_mini("cpu")
    made = {line["id"]: line for line in lines(tmp_path / "out" / "manifest.jsonl")}
    for row in rows:
        line = made.pop(row["id"])
        heard, rate = soundfile.read(tmp_path / "out" / line["file"])
        wanted = alone.generate(row["text"], seed=row["seed"])[0].numpy()
        assert len(heard) == len(wanted)
        assert abs(heard - wanted).max() < 2e-3
        assert line["duration"] == pytest.approx(len(heard) / rate, abs=1e-3)
        assert line["stopped"] == ["eos"]
        assert line["tokens"] > 0
        assert line["seed"] == row["seed"]
        assert line["seconds"].keys() >= {"tokens", "mel", "wav"}
    assert not made
    assert (tmp_path / "out" / "failures.jsonl").read_text() == ""


def test_the_take_with_the_best_score_is_kept_with_its_seed(model, tmp_path):
    row = {"text": TEXTS[1], "id": "a", "seed": 5}
    given = table(tmp_path / "in.jsonl", [row | {"takes": 3}, row | {"id": "b", "seed": 7}])
    outcomes = speak(model, read_rows(given), "flac", score=lambda take: take.seed)
    made = {outcome.row.id: outcome for outcome in outcomes}
    assert made["a"].record["kept"] == [{"seed": 7, "tries": 1}]
    assert made["a"].data == made["b"].data
    assert "kept" not in made["b"].record
    assert made["a"].record.keys() - {"kept"} == made["b"].record.keys()
    (failed,) = speak(model, read_rows(table(tmp_path / "in.jsonl", [row | {"takes": 99}])), "flac")
    assert "takes=99" in failed.reason


def test_closing_the_generator_cancels_the_rows_in_several_takes(model, tmp_path):
    rows = read_rows(table(tmp_path / "in.jsonl", [{"text": text, "takes": 2} for text in TEXTS * 3]))
    outcomes = speak(model, rows, "flac", in_flight=12)
    next(outcomes)
    outcomes.close()
    assert soon(lambda: model.stats()["calls"] == 0)


def test_a_rows_own_respellings_come_before_those_of_its_voice_and_of_all(model, tmp_path, monkeypatch):
    (tmp_path / "anna.wav").write_bytes(recording())
    spellings, submit = [], model.submit

    def listed(text, **how):
        spellings.append(how["pronounce"](text) if callable(how["pronounce"]) else how["pronounce"])
        return submit(text, **how)

    monkeypatch.setattr(model, "submit", listed)
    respelt = Pronunciations({"good": "fine"}, voices={"anna": Pronunciations({"good": "great"})})
    rows = [{"text": "Good."}, {"text": "Good.", "voice": "anna.wav"}, {"text": "Good.", "pronounce": {"good": "bad"}}]
    given = read_rows(table(tmp_path / "in.jsonl", rows))
    assert not any(isinstance(outcome, Failed) for outcome in speak(model, given, "flac", pronounce=respelt))
    assert spellings == ["Fine.", "Great.", {"good": "bad"}]


def test_other_respellings_or_takes_need_another_folder(tmp_path, capsys):
    given = table(tmp_path / "in.jsonl", [{"text": "Good.", "id": "a"}])
    (tmp_path / "names.toml").write_text('[words]\ngood = "fine"\n')
    words = ["batch", str(given), "-o", str(tmp_path / "out"), *WORDS]
    respelt = [*words, "--pronounce", str(tmp_path / "names.toml")]
    assert main([*respelt, "--takes", "2"]) == 0
    (line,) = lines(tmp_path / "out" / "manifest.jsonl")
    assert len(line["kept"]) == 1
    assert main([*respelt, "--takes", "2"]) == 0
    for changed in (words, [*respelt, "--takes", "3"], [*respelt, "--takes", "2", "--score", "voice"]):
        assert main(changed) == 1
    (tmp_path / "names.toml").write_text('[words]\ngood = "great"\n')
    assert main([*respelt, "--takes", "2"]) == 1
    assert capsys.readouterr().err.count("another folder") == 4


@pytest.mark.kernels
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_a_row_sounds_the_same_alone_and_beside_others(quantize, tmp_path):
    from chatterbox_opt import ChatterboxTTS

    small = ChatterboxTTS.from_mini("cpu", use_mixed_precision=False, quantize=quantize)
    rows = read_rows(table(tmp_path / "in.jsonl", [{"text": text} for text in TEXTS]))
    alone = {made.row.id: made.data for made in speak(small, rows, "flac", in_flight=1)}
    together = {made.row.id: made.data for made in speak(small, reversed(rows), "flac", in_flight=len(rows))}
    small.close()
    assert len(alone) == len(TEXTS)
    assert alone == together


def test_rows_run_side_by_side_the_longest_first(model, tmp_path):
    rows = read_rows(table(tmp_path / "in.jsonl", [{"text": "a" * n} for n in (5, 50, 1, 20)]))
    order = []

    def outcomes(left):
        order.extend(len(row.text) for row in left)
        return speak(model, left, "flac")

    assert speak_table(rows, tmp_path / "out", outcomes, verbose=False).made == 4
    assert order == [50, 20, 5, 1]

    def steps(in_flight):
        before = model.stats()["steps"]
        list(speak(model, rows, "flac", in_flight=in_flight))
        return model.stats()["steps"] - before

    assert steps(None) < steps(1)


def test_failed_rows_are_listed_with_reasons_and_the_others_are_made(model, tmp_path):
    given = table(tmp_path / "in.jsonl", [
        {"text": "Good."}, {"text": ""}, {"text": "Bad.", "top_p": 7.0}, {"text": "Bad.", "voice": "gone.wav"},
        {"text": "Bad.", "language_id": "fr"}, {"text": "In the way.", "id": "manifest.jsonl/x"}, {"text": "Hello."},
    ])
    summary = speak_into(model, read_rows(given), tmp_path / "out")
    assert (summary.made, summary.failed) == (2, 5)
    reasons = {line["row"]: line["reason"] for line in lines(tmp_path / "out" / "failures.jsonl")}
    assert reasons.keys() == {2, 3, 4, 5, 6}
    for number, reason in {2: "no text", 3: "top_p", 4: "gone.wav", 5: "language_id", 6: "in its way"}.items():
        assert reason in reasons[number]


def test_a_failed_row_is_tried_again_and_leaves_the_list_once_it_is_made(model, tmp_path):
    given = table(tmp_path / "in.jsonl", [{"text": "Good.", "voice": "late.wav"}, {"text": ""}])
    assert speak_into(model, read_rows(given), tmp_path / "out").failed == 2
    (tmp_path / "late.wav").write_bytes(recording())
    summary = speak_into(model, read_rows(given), tmp_path / "out")
    assert (summary.made, summary.failed, summary.before) == (1, 1, 0)
    assert [line["row"] for line in lines(tmp_path / "out" / "failures.jsonl")] == [2]


def test_a_row_that_could_not_be_read_leaves_the_list_once_it_is_made(model, tmp_path):
    for line, failed in (('{"text": "Good.", "id": "b"', [1, 2]), ('{"text": "Good.", "id": "b"}', [1])):
        given = table(tmp_path / "in.jsonl", [{"text": ""}, line])
        speak_into(model, read_rows(given), tmp_path / "out")
        assert [line["row"] for line in lines(tmp_path / "out" / "failures.jsonl")] == failed


def test_a_row_that_is_no_longer_in_the_table_leaves_the_list(model, tmp_path):
    bad = [{"text": "", "id": "bad"}, {"text": "Hello.", "id": "gone", "voice": "gone.wav"}, {"text": ""}]
    for rows, failed in ((bad, {"bad", "gone", "0000003"}), (bad[:1], {"bad"}), ([], set())):
        given = table(tmp_path / "in.jsonl", [*rows, {"text": "Good.", "id": "a"}])
        assert speak_into(model, read_rows(given), tmp_path / "out").failed == len(failed)
        assert {line["id"] for line in lines(tmp_path / "out" / "failures.jsonl")} == failed


def test_a_folder_of_another_table_keeps_its_list(model, tmp_path):
    speak_into(model, read_rows(table(tmp_path / "in.jsonl", [{"text": "Good."}, {"text": ""}])), tmp_path / "out")
    with pytest.raises(ValueError, match="was made from another text"):
        speak_into(model, read_rows(table(tmp_path / "in.jsonl", [{"text": "Bad."}])), tmp_path / "out")
    assert [line["row"] for line in lines(tmp_path / "out" / "failures.jsonl")] == [2]


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    def load(*_, **__):
        raise AssertionError("the model was loaded")

    for loader in ("cli.model.load", "scale.on_ray.speak_on_ray"):
        monkeypatch.setattr(f"chatterbox_opt.{loader}", load)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--voice", "missing.wav"], "missing.wav: there is no such file"),
        (["--voice", "missing.wav", "--ray"], "missing.wav: there is no such file"),
        (["--voice", "."], ".: this is a folder"),
        (["--takes", "0"], "takes=0: a whole number from 1 to 64 is needed"),
        (["--retries", "-1"], "retries=-1: a whole number from 0 to 20 is needed"),
        (["--takes", "65", "--ray", "head:6379"], "takes=65: a whole number from 1 to 64 is needed"),
    ],
)
def test_options_are_checked_before_the_model_is_loaded(options, message, nothing_is_loaded, tmp_path, capsys):
    given = table(tmp_path / "in.jsonl", [{"text": "Good."}])
    assert main(["batch", str(given), "-o", str(tmp_path / "out"), *WORDS, *options]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_machines_of_a_cluster_may_have_a_recording_that_this_one_has_not(tmp_path, monkeypatch):
    asked = []

    def speak_on_ray(load, rows, *_, **__):
        asked.extend(rows)
        return []

    monkeypatch.setattr("chatterbox_opt.scale.on_ray.speak_on_ray", speak_on_ray)
    given = table(tmp_path / "in.jsonl", [{"text": "Good."}])
    words = ["batch", str(given), "-o", str(tmp_path / "out"), *WORDS, "--ray", "head:6379"]
    assert main([*words, "--voice", str(tmp_path / "far.wav")]) == 0
    assert [row.recording for row in asked] == [str(tmp_path / "far.wav")]


def test_a_score_needs_a_row_in_several_takes(tmp_path, capsys):
    given = table(tmp_path / "in.jsonl", [{"text": "Good."}, {"text": ""}])
    words = ["batch", str(given), "-o", str(tmp_path / "out"), *WORDS, "--score", "voice"]
    assert main(words) == 1
    assert "give --takes 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_judge_adds_fields_to_the_manifest_and_may_fail_a_row(model, tmp_path):
    rows = read_rows(table(tmp_path / "in.jsonl", [{"text": "Good.", "id": "a"}, {"text": "Hello.", "id": "b"}]))

    def judge(row, wave, rate):
        if row.id == "a":
            raise RuntimeError("cannot be understood")
        return {"wer": 0.0, "rate": rate}

    outcomes = {outcome.row.id: outcome for outcome in speak(model, rows, "flac", judge=judge)}
    assert isinstance(outcomes["a"], Failed)
    assert outcomes["a"].reason == "cannot be understood"
    assert outcomes["b"].record["wer"] == 0.0


def test_rows_in_the_manifest_are_not_made_again(model, tmp_path):
    rows = [{"text": text} for text in TEXTS]
    speak_into(model, read_rows(table(tmp_path / "in.jsonl", rows[:2])), tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.flac")}
    summary = speak_into(model, read_rows(table(tmp_path / "in.jsonl", rows)), tmp_path / "out")
    assert (summary.before, summary.made) == (2, 4)
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())

    def no_outcomes(left):
        raise AssertionError("nothing was left to do")

    assert speak_table(read_rows(tmp_path / "in.jsonl"), tmp_path / "out", no_outcomes, verbose=False).before == 6


def test_a_folder_keeps_the_texts_and_settings_that_it_was_begun_with(model, tmp_path):
    speak_into(model, read_rows(table(tmp_path / "in.jsonl", [{"text": "Good.", "id": "a"}])), tmp_path / "out")
    with pytest.raises(ValueError, match="begun with format='flac'"):
        speak_into(model, read_rows(tmp_path / "in.jsonl"), tmp_path / "out", kind="wav")
    with pytest.raises(ValueError, match="'a' was made from another text"):
        speak_into(model, read_rows(table(tmp_path / "in.jsonl", [{"text": "Bad.", "id": "a"}])), tmp_path / "out")


def test_half_written_files_and_lines_of_a_killed_run_are_removed(model, tmp_path):
    given = table(tmp_path / "in.jsonl", [{"text": text, "id": f"of/{text[0]}"} for text in TEXTS[:3]])
    speak_into(model, read_rows(given), tmp_path / "out")
    whole, manifest = sounds(tmp_path / "out"), tmp_path / "out" / "manifest.jsonl"
    last = lines(manifest)[-1]["file"]
    manifest.write_bytes(manifest.read_bytes()[:-20])
    (tmp_path / "out" / (last + ".part")).write_bytes(b"half")
    assert speak_into(model, read_rows(given), tmp_path / "out").made == 1
    assert sounds(tmp_path / "out") == whole
    assert len({line["id"] for line in lines(manifest)}) == len(lines(manifest)) == 3
    assert not list((tmp_path / "out").rglob("*.part"))


def test_two_runs_do_not_write_into_one_folder(model, tmp_path):
    pytest.importorskip("fcntl", reason="there are no such locks here")
    rows = read_rows(table(tmp_path / "in.jsonl", [{"text": "Good."}]))

    def outcomes(left):
        with pytest.raises(ValueError, match="another run"):
            speak_into(model, rows, tmp_path / "out")
        return speak(model, left, "flac")

    assert speak_table(rows, tmp_path / "out", outcomes, verbose=False).made == 1


def test_tar_files_hold_the_same_sound_and_can_be_continued(model, tmp_path):
    rows = read_rows(table(tmp_path / "in.jsonl", [{"text": text} for text in [*TEXTS, TEXTS[0]]]))
    speak_into(model, rows, tmp_path / "files")
    speak_into(model, rows[:3], tmp_path / "tars", shard=2)
    speak_into(model, rows, tmp_path / "tars", shard=2)
    found, sizes = {}, {}
    for path in sorted((tmp_path / "tars").glob("*.tar")):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        found |= {name: data for name, data in members.items() if name.endswith(".flac")}
        sizes[path.name] = len(members)
    assert sizes == {"shard-000000.tar": 4, "shard-000001.tar": 2, "shard-000002.tar": 4, "shard-000003.tar": 4}
    assert found == sounds(tmp_path / "files")
    files = {line["id"]: line["file"] for line in lines(tmp_path / "tars" / "manifest.jsonl")}
    assert len(files) == 7
    assert set(files.values()) == set(sizes)


def test_parquet_files_hold_the_same_sound_and_can_be_continued(model, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="parquet needs pyarrow")
    rows = read_rows(table(tmp_path / "in.jsonl", [{"text": text} for text in TEXTS]))
    speak_into(model, rows, tmp_path / "files")
    speak_into(model, rows[:3], tmp_path / "many", shard=2, packing="parquet")
    with pytest.raises(ValueError, match="begun with packing='parquet'"):
        speak_into(model, rows, tmp_path / "many", shard=2)
    speak_into(model, rows, tmp_path / "many", shard=2, packing="parquet")
    shards = [parquet.read_table(path) for path in sorted((tmp_path / "many").glob("shard-*.parquet"))]
    assert [len(shard) for shard in shards] == [2, 1, 2, 1]
    found = [row for shard in shards for row in shard.to_pylist()]
    assert {f"{row['id']}.flac": row["flac"] for row in found} == sounds(tmp_path / "files")
    made = {line.pop("id"): line for line in lines(tmp_path / "many" / "manifest.jsonl")}
    for row in found:
        assert made[row["id"]]["duration"] == row["duration"] == json.loads(row["record"])["duration"]
    with pytest.raises(ValueError, match="--shard"):
        speak_into(model, rows, tmp_path / "none", packing="parquet")


def test_a_seed_of_any_size_has_its_row_in_parquet():
    parquet = pytest.importorskip("pyarrow.parquet", reason="parquet needs pyarrow")
    seeds = [0, -1, 2**63 - 1, 2**64 - 1, 10**30]
    speeches = [({"id": str(s), "seed": s, "duration": 1.0, "tokens": 25}, b"sound") for s in seeds]
    found = parquet.read_table(io.BytesIO(PACKINGS["parquet"](speeches, "flac"))).to_pylist()
    assert [(row["seed"] - seed) % 2**64 for row, seed in zip(found, seeds)] == [0] * 5, "the same speech"
    assert [row["seed"] for row in found][:3] == seeds[:3]


def test_an_id_with_a_dot_is_refused_in_tar_files_only(model, tmp_path):
    rows = read_rows(table(tmp_path / "in.jsonl", [{"text": "Good.", "id": "a.b"}]))
    assert speak_into(model, rows, tmp_path / "files").made == 1
    assert speak_into(model, rows, tmp_path / "tars", shard=2).failed == 1


@pytest.mark.parametrize("kind", ["flac", "mp3", "wav"])
def test_each_format_has_the_length_that_its_record_says(kind, model, tmp_path):
    if kind == "mp3":
        pytest.importorskip("lameenc", reason="mp3 needs lameenc: pip install 'chatterbox-opt[serve]'")
    (made,) = speak(model, read_rows(table(tmp_path / "in.jsonl", [{"text": "Good."}])), kind)
    heard, rate = soundfile.read(io.BytesIO(made.data))
    assert rate == 24_000
    assert len(heard) / rate == pytest.approx(made.record["duration"], abs=0.1)
    assert np.abs(heard).max() > 0


def test_closing_the_generator_cancels_its_rows(model, tmp_path):
    rows = read_rows(table(tmp_path / "in.jsonl", [{"text": text} for text in TEXTS]))
    outcomes = speak(model, rows, "flac")
    next(outcomes)
    outcomes.close()
    assert soon(lambda: model.stats()["calls"] == 0)


def test_voices_are_prepared_once(model, tmp_path, monkeypatch):
    (tmp_path / "v.wav").write_bytes(recording())
    prepared = []
    original = model.prepare_voice
    monkeypatch.setattr(model, "prepare_voice", lambda path: prepared.append(path) or original(path))
    rows = read_rows(table(tmp_path / "in.jsonl", [{"text": text, "voice": "v.wav"} for text in TEXTS[:3]]))
    assert not any(isinstance(outcome, Failed) for outcome in speak(model, rows, "flac"))
    assert prepared == [str(tmp_path / "v.wav")]


def test_a_killed_run_is_continued_with_nothing_twice_and_nothing_missing(tmp_path):
    rows = [{"text": f"{text} And {i} more.", **QUICK} for i, text in enumerate(TEXTS * 4)]
    words = ["batch", str(table(tmp_path / "in.jsonl", rows)), "-o", str(tmp_path / "out"), *WORDS]
    manifest = tmp_path / "out" / "manifest.jsonl"
    assert killed_after(5, words, tmp_path / "out") == -signal.SIGKILL
    before = manifest.read_bytes()
    sounds_before = sounds(tmp_path / "out")
    assert main(words) == 0
    assert manifest.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    made = lines(manifest)
    assert sorted(line["id"] for line in made) == [f"{n:07d}" for n in range(1, 25)]
    whole = sounds(tmp_path / "out")
    assert whole.keys() == {line["file"] for line in made}
    assert sounds_before.items() <= whole.items()
    for name in whole:
        assert soundfile.info(tmp_path / "out" / name).frames > 0


def test_speaking_a_table_needs_no_server(tmp_path):
    code = "import sys, chatterbox_opt.scale.batch, chatterbox_opt.scale.speaking, chatterbox_opt.scale.rows; " \
           "print(sorted({'fastapi', 'uvicorn', 'ray', 'pyarrow', 'lameenc'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.stdout.strip() == "[]", done.stderr
