"""The benchmarks run, their last line is JSON, and known inputs give known results. No test depends on timing."""

import argparse
import dataclasses
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import benchmark_comparison
import benchmark_inference
import benchmark_streaming
import check_results
import ladder
import limits
import pytest
import quality
import report
import sides
import tables
import torch
import workload
from documents import PAGES, ROOT, read

from chatterbox_opt.config import MODELS
from chatterbox_opt.doctor import ceilings
from chatterbox_opt.options import EngineOptions


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("benchmarks")


def run(script, work, out, capsys, *options):
    """Returns (exit status, the document of the last line, the file's path)."""
    status = script.main(["--device", "cpu", "--size", "tiny", "--work-dir", str(work), "--out", str(out), *options])
    last = capsys.readouterr().out.rstrip().splitlines()[-1]
    (path,) = out.glob("*.json")
    assert json.loads(last) == json.loads(path.read_text())
    return status, json.loads(last), path


# ---- the scripts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "benchmarks").glob("benchmark_*.py")))
def test_help_starts_no_benchmark(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(name).main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


def test_comparison(work, tmp_path, capsys):
    baseline = "upstream" if importlib.util.find_spec("chatterbox") else "exact"
    options = ["--lengths", "0.4", "--repeats", "1", "--baseline", baseline, "--options", "exact"]
    status, document, path = run(benchmark_comparison, work, tmp_path, capsys, *options)
    assert status == 0, document["sides"]
    assert [r["side"] for r in document["rows"]] == ["baseline", "optimized"]
    assert document["equal_work"]
    assert document["rows"][0]["speech_seconds"] == 0.4
    (ratio,) = document["ratios"]
    assert ratio["low"] <= ratio["ratio"] <= ratio["high"]
    for row in document["rows"]:
        assert all(row["stages"][s] > 0 for s in ("tokens", "mel", "wav", "watermark"))
        named = sum(seconds for stage, seconds in row["stages"].items() if stage != "other")
        assert named <= 1.02 * row["seconds"]["median"], "nothing is counted twice"
    assert document["memory"]["optimized"]["peak_rss_mb"] > 100
    assert {p.name for p in tmp_path.glob("*.wav")} == {"baseline_0-4.wav", "optimized_0-4.wav"}
    if importlib.util.find_spec("matplotlib"):
        assert path.with_suffix(".png").stat().st_size > 10_000
    assert str(work) not in path.read_text()


def test_comparison_without_the_baseline_says_how_to_install_it(work, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    args = argparse.Namespace(baseline="upstream", model="tts", options=None, preset=[])
    made, notes = benchmark_comparison.make_sides(args, workload.weights("random", "tts", "tiny", work))
    assert [side.name for side in made] == ["optimized"]
    assert "pip install --no-deps chatterbox-tts==0.1.7" in notes[0]


def test_a_side_that_fails_leaves_the_other_its_figures():
    answer = {"seconds": 1.0, "tokens": 25, "warmup": False, "stages": dict.fromkeys(tables.STAGES, 0.1), "memory": {}}
    broken, sound = sides.Remote("baseline", "baseline", []), sides.Remote("optimized", "optimized", [])
    broken.failed = "RuntimeError: out of memory"
    assert broken.ask("speak") == {"error": broken.failed}
    cold = {"import_and_load": 1.0, "voice": 1.0, "first_audio": 2.0, "memory": {"empty": None, "loaded": None}}
    cold = {"baseline": cold | {"options": None}, "optimized": cold | {"options": {}}}
    runs = {"short": {"baseline": [], "optimized": [answer]}}
    document = benchmark_comparison.summarise([broken, sound], cold, runs)
    assert document["ratios"] == []
    assert "chatterbox_opt" in tables.comparison_table(document)
    assert "chatterbox-tts" not in tables.comparison_table(document)


def test_inference(work, tmp_path, capsys):
    options = ["--precision", "float32", "int8", "--batch", "1", "2", "--tokens", "6", "--repeats", "1"]
    options += ["--prompt", "6"]
    status, document, _ = run(benchmark_inference, work, tmp_path, capsys, *options)
    assert status == 0
    assert not document["skipped"]
    seen = {(r["stage"], r["precision"], r["batch"]) for r in document["rows"]}
    assert seen == {(f["stage"], f["precision"], f["batch"]) for f in document["ceilings"]}
    assert seen >= {("tokens", "int8", 2), ("mel", "float32", 2), ("voice", "float32", 1), ("watermark", "float32", 2)}
    assert all(r["floor"] > 0 and r["steady"]["median"] > 0 for r in document["rows"])
    (logits,) = document["logits"]
    assert logits["precision"] == "int8"
    assert 0 < logits["rms_error"] < logits["spread"]


def test_ladder(work, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ladder, "ALONE", ladder.ALONE[:1])
    status, document, _ = run(ladder, work, tmp_path, capsys, "--seconds", "0.3", "--repeats", "1")
    assert status == 0, tables.markdown(document)
    assert document["exact_holds"]
    checked = [r for r in document["rows"] if r["exact"]]
    assert checked
    assert all(r["same_tokens"] for r in checked)
    assert document["rows"][0]["ratio"] == 1


def test_ladder_has_a_place_for_every_option():
    climbed = {field for _, fields, _ in ladder.CLIMB for field in fields}
    alone = {field for _, fields, _, _ in ladder.ALONE for field in fields}
    assert climbed | alone | set(ladder.UNMEASURED) == {f.name for f in dataclasses.fields(EngineOptions)}


def test_quality(work, tmp_path, capsys):
    options = ["--tokens", "12", "--modes", "defaults", "int8", "prompt5"]
    status, document, _ = run(quality, work, tmp_path, capsys, *options)
    assert status == 0
    exact, defaults, int8, prompt = document["rows"]
    assert exact["mode"] == "exact"
    assert int8["kl"] > defaults["kl"] - 1e-9
    assert int8["mel_snr_db"] > prompt["mel_snr_db"]
    if document["environment"]["capability"] == "AVX2":  # T3's weights in float16, the rest in float32
        assert defaults["argmax_agreement"] == 1
        assert defaults["kl"] < 1e-4
        assert defaults["mel_snr_db"] > 60
    assert prompt["kl"] < 1e-6  # T3 hears the whole prompt


def test_streaming(work, tmp_path, capsys):
    options = ["--lengths", "3", "--first", "0.5", "2", "--repeats", "2", "--options", "exact"]
    status, document, _ = run(benchmark_streaming, work, tmp_path, capsys, *options)
    assert status == 0
    short, long = document["rows"]
    assert short["chunks"] > long["chunks"] > 1
    assert short["speech_seconds"] == long["speech_seconds"] == 3
    for row in document["rows"]:
        assert row["first_seconds"]["median"] < row["last_seconds"]["median"]
        assert row["sooner"] > 0


def test_times_of_a_listener(monkeypatch):
    clock = iter([0.0, 1.0, 1.5, 4.0])  # the call, then three chunks
    monkeypatch.setattr(benchmark_streaming.time, "perf_counter", lambda: next(clock))
    heard = benchmark_streaming.listen([torch.zeros(1, n) for n in (100, 100, 50)], 100)
    assert heard == {
        "first_seconds": 1.0, "last_seconds": 4.0, "gap_seconds": 1.0, "speech_seconds": 2.5, "chunks": 3
    }


# ---- what they are made of -----------------------------------------------------------------------


@pytest.mark.parametrize("family", ["tts", "turbo"])
def test_random_weights_never_end(work, family):
    source = workload.weights("random", family, "tiny", work)
    model = workload.load(source, "cpu", EngineOptions.exact(), enable_watermark=False)
    voice = model.prepare_voice(workload.voice_file(work))
    for seed in range(3):
        (speech,) = model.speak(model.jobs(["Hello there."], voices=voice, seeds=seed, max_new_tokens=60))
        assert speech.stops == ["limit"]
        assert len(speech.tokens[0]) == 60 + 3 * (family == "turbo")
        assert len(set(speech.tokens[0].tolist())) > 10


def test_ceilings_of_the_published_sizes():
    """Against figures counted by hand from upstream's code."""
    tts, turbo, nano = (MODELS[f] for f in ("tts", "turbo", "nano"))
    assert sum(ceilings.t3_weights(tts.t3)) == pytest.approx(511.7e6, rel=1e-3)
    assert sum(ceilings.t3_weights(turbo.t3)) == pytest.approx(308.7e6, rel=1e-3)
    assert sum(ceilings.t3_weights(nano.t3)) == pytest.approx(90.0e6, rel=1e-3)
    step = ceilings.t3_step(tts.t3, "bfloat16", 350, 1, "bfloat16")
    assert step[1] / 4.3e12 == pytest.approx(0.258e-3, rel=0.01)
    assert ceilings.estimator(tts.flow, 1000) == pytest.approx((132.2e6 + 0.1147e6 * 1000) * 1000, rel=1e-3)
    assert ceilings.flow(tts.flow, 250, 250, 10) == pytest.approx(5.0e12, rel=0.02)
    assert ceilings.flow(turbo.flow, 250, 250, 2) == pytest.approx(0.49e12 + 0.07e12, rel=0.05)
    assert ceilings.hift(tts.hift, 50) == pytest.approx(30.6e9, rel=0.01)


def test_a_voice_is_written_once_and_differs_by_variant(work):
    first, again, other = (workload.voice_file(work, 3.0, v).read_bytes() for v in (0, 0, 1))
    assert first == again
    assert first != other


def test_options_are_read_by_field():
    assert workload.switches([])["engine"] == EngineOptions()
    assert workload.switches(["exact", "quantize=int8"])["engine"] == EngineOptions.exact(quantize="int8")
    made = workload.switches(["prompt_seconds=5.0", "compile=none", "prefix_cache=false", "slots=4"])
    assert made["engine"] == EngineOptions(prompt_seconds=5.0, compile=None, prefix_cache=False, slots=4)
    named = workload.switches(["preset=fast", "decoder=standard", "slots=4"])
    assert named == {"engine": EngineOptions(slots=4), "preset": "fast", "decoder": "standard"}
    with pytest.raises(SystemExit, match="quantise"):
        workload.switches(["quantise=int8"])


def test_commands_hold_no_folders():
    line = report.command(["--model", "turbo", "--out", "/a/b", "--work-dir", "/c", "--voice", "/d/ref.wav"])
    assert line.endswith("--model turbo --voice ref.wav")


# ---- documents agree with results ----------------------------------------------------------------


def compared(commit="abc", date="2026-01-01 00:00 UTC", seconds=2.0):
    stages = dict.fromkeys(tables.STAGES, 0.1)
    row = {"length": "short", "speech_seconds": 5.0, "stages": stages, "warmup_seconds": None}
    rows = [
        {**row, "side": side, "seconds": report.spread([s]), "rtf": report.spread([s / 5])}
        for side, s in (("baseline", 20.0), ("optimized", seconds))
    ]
    return {
        "benchmark": "comparison", "label": "tts", "command": "python benchmarks/benchmark_comparison.py",
        "environment": {"device": "A GPU", "kind": "cuda", "cores": 4, "threads": 4, "torch": "2.6", "commit": commit,
                        "date": date},
        "settings": {"model": "tts", "size": "full", "weights": "random"},
        "sides": {s: {"failed": None, "asked": []} for s in ("baseline", "optimized")},
        "cold": {s: {} for s in ("baseline", "optimized")}, "memory": {s: {} for s in ("baseline", "optimized")},
        "rows": rows, "equal_work": True, "notes": [],
        "ratios": [{"length": "short", "side": "optimized", "ratio": 20 / seconds, "low": 9, "high": 11, "turns": 3}],
    }


def result(folder, commit="abc", **how):
    (folder / f"{commit}.json").write_text(json.dumps(compared(commit, **how)))


def test_another_checkout_is_measured_with_these_scripts(tmp_path):
    """Whatever is installed, and wherever these scripts are."""
    package = tmp_path / "chatterbox_opt"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for checkout, expected in ((tmp_path, package), (None, ROOT / "chatterbox_opt")):
        env = os.environ | ({} if checkout is None else {workload.MEASURED: str(checkout)})
        code = f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n" \
               "import workload, chatterbox_opt; print(chatterbox_opt.__file__)"
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert Path(done.stdout.strip()).parent == expected
    with pytest.raises(SystemExit, match="it is no checkout"):
        workload.checkout(tmp_path / "mistyped")


def test_a_comparison_whose_time_is_up_before_its_first_turn_has_a_page():
    page = tables.markdown(compared() | {"rows": [], "ratios": []})
    assert "no call fitted into the time given" in page
    assert "Work: none was compared." in page


def test_a_whole_call_at_its_ceilings():
    side = {"asked": [], "options": dict(
        dtype="float16", s3gen_dtype="bfloat16", quantize=None, flow_steps=None, prompt_seconds=None
    )}  # fmt: skip
    int8 = {**side, "options": {**side["options"], "quantize": "int8"}}
    fast = {**int8, "asked": ["preset=fast"]}
    reading = ceilings.Machine(30.0, dict.fromkeys(("float16", "bfloat16", "int8"), float("inf")))
    tokens = limits.floor(reading, "tts", 4.0, side)
    assert tokens == pytest.approx(100 * ceilings.t3_step(MODELS["tts"].t3, "float16", 84, 1, "float32")[1] / 30e9)
    assert limits.floor(reading, "tts", 4.0, int8) < 0.6 * tokens
    computing = ceilings.Machine(float("inf"), dict.fromkeys(("float16", "bfloat16", "int8"), 400.0))
    step = 100 * ceilings.t3_step(MODELS["tts"].t3, "float16", 84, 1, "float32")[0]
    sound = ceilings.flow(MODELS["tts"].flow, 100, 250, 10) + ceilings.hift(MODELS["tts"].hift, 200)
    assert limits.floor(computing, "tts", 4.0, side) == pytest.approx((step + sound) / 400e9)
    assert limits.floor(computing, "tts", 4.0, fast) < 0.25 * limits.floor(computing, "tts", 4.0, int8), "two steps"


def test_rates_of_a_processor_are_the_best_that_were_measured():
    where = dict(kind="cpu", device="A CPU", cores=2)
    runs = [dict(read_gb_per_s=20.0, gflops={"int8": 3.0}), dict(read_gb_per_s=10.0, gflops={"int8": 5.0})]
    found = limits.rates({"environment": where, "machine": machine} for machine in runs)
    assert found == {"2 cores of A CPU": ceilings.Machine(20.0, {"int8": 5.0})}


def test_results_are_written_and_checked(tmp_path, capsys):
    page = tmp_path / "PAGE.md"
    end = "<!-- /results -->"
    lines = ["before", "<!-- results:summary -->", end, "after", "<!-- results:comparison tts -->", "old", end, ""]
    page.write_text("\n".join(lines))
    results = tmp_path / "results"
    results.mkdir()
    arguments = ["--results", str(results), "--documents", str(page)]
    assert check_results.main(arguments) == 1
    assert "there is no result" in capsys.readouterr().err
    assert page.read_text() == "\n".join(lines), "it is not emptied"
    result(results)
    assert check_results.main([*arguments, "--check"]) == 1
    assert "its tables are not those of the results" in capsys.readouterr().err
    assert check_results.main(arguments) == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- results:summary -->\n")
    assert "| A GPU | English | defaults | 5 s | 4 | 0.4 | **10.0** (9.0 to 11.0) |" in text
    assert "\nold\n" not in text
    assert check_results.main([*arguments, "--check"]) == 0
    result(results, "newer", date="2026-02-01 00:00 UTC", seconds=1.0)
    assert check_results.main([*arguments, "--check"]) == 1
    check_results.main(arguments)
    assert "**20.0**" in page.read_text()
    assert "**10.0**" not in page.read_text()
    page.write_text(page.read_text().replace("**20.0**", "**25.0**"))
    assert check_results.main([*arguments, "--check"]) == 1


def test_results_name_no_machine(tmp_path, capsys):
    page = tmp_path / "PAGE.md"
    page.write_text("<!-- results:nonsense -->\n<!-- /results -->\n")
    (tmp_path / "bad.json").write_text('{"benchmark": "ladder"}')
    result(tmp_path, "leaks")
    leaking = tmp_path / "leaks.json"
    leaking.write_text(leaking.read_text().replace("benchmark_comparison.py", "x.py --voice /home/me/a.wav"))
    assert check_results.main(["--results", str(tmp_path), "--documents", str(page)]) == 1
    said = capsys.readouterr().err
    assert "bad.json: lacks" in said
    assert "leaks.json: holds a path" in said
    assert "results:nonsense is not one of" in said


def test_committed_documents_agree_with_committed_results():
    assert check_results.main(["--check"]) == 0


def test_every_committed_result_is_in_a_document():
    folder, pages = ROOT / "benchmarks" / "results", "".join(map(read, PAGES))
    shown = {document["file"] for document in check_results.read(folder)[0]}
    assert [path.name for path in folder.iterdir() if path.name not in shown and path.name not in pages] == []


# ---- the server ----------------------------------------------------------------------------------


def test_server(work, tmp_path, capsys):
    pytest.importorskip("fastapi", reason="the server is not installed: pip install -e '.[serve]'")
    import benchmark_server

    status, document, _ = run(benchmark_server, work, tmp_path, capsys, "--load", "3:1")
    assert status == 0
    (row,) = document["rows"]
    assert row["answered"] + row["refused"] == 3
    assert row["answered"] >= 1
    assert row["lost"] == row["other"] == 0
    assert 0 < row["first_p50"] <= row["first_p95"] < row["wall_seconds"]
    assert 0 <= row["continuous"] <= 1


def test_gaps_and_percentiles_of_a_server():
    import benchmark_server

    second = 2 * workload.SAMPLE_RATE
    answer = {"came": [1.0, 1.5, 4.0, 4.1], "sizes": [second, second, second // 2, second]}
    assert benchmark_server.longest_gap(answer) == 1.0  # two seconds from 1.0 on are over at 3.0
    assert benchmark_server.longest_gap({"came": [5.0], "sizes": [second]}) == 0.0
    assert benchmark_server.percentile([1, 2, 3, 4], 0.5) == 2
    assert benchmark_server.percentile(list(range(1, 101)), 0.95) == 95
    assert benchmark_server.percentile([7], 0.95) == 7


def test_mixed_up_answers_are_found():
    import benchmark_server

    a, b = (torch.randn(4800, generator=torch.Generator().manual_seed(k)) for k in range(2))
    sounds = [(9000 * x).short().numpy().tobytes() for x in (a, b)]
    answers = [{"which": k, "status": s, "sound": x, "came": [1.0], "sizes": [len(x)]}
               for k, s, x in ((0, 200, sounds[0]), (1, 200, sounds[0]), (0, 429, b""), (1, 0, b""))]
    found = benchmark_server.summary(answers, sounds, 2.0)
    assert (found["answered"], found["refused"], found["lost"], found["same"], found["other"]) == (2, 1, 1, 1, 1)
    nearly = bytes(sounds[0][:-2]) + b"\x01\x00"
    assert benchmark_server.alike(nearly, sounds[0])
    assert not benchmark_server.alike(sounds[0][:-2], sounds[0])
