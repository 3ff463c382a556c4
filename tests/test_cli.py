"""The command line: what it writes, what it says, and how it exits."""

import io
import subprocess
import sys

import pytest
import soundfile
import torch

from chatterbox_opt.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("tts") / "model"
    assert main(["random-checkpoint", str(where), "--size", "tiny", "--seed", "3"]) == 0
    return where


def test_say(folder, tmp_path, capsys, monkeypatch):
    from chatterbox_opt.tts import OptimizedChatterboxTTS

    monkeypatch.setattr(OptimizedChatterboxTTS, "defaults", type(OptimizedChatterboxTTS.defaults)(max_new_tokens=8))
    out = tmp_path / "hello.wav"
    assert main(["say", "Hello.", "-o", str(out), "--dir", str(folder), "--device", "cpu", "--seed", "1"]) == 0
    wav, rate = soundfile.read(out)
    assert rate == 24_000
    assert len(wav)
    said = capsys.readouterr()
    assert "hello.wav" in said.out
    assert "at most" in said.err


def test_a_stream_goes_to_standard_output(folder, capfdbinary, monkeypatch):
    """Samples and nothing else."""
    import numpy as np

    from chatterbox_opt.tts import OptimizedChatterboxTTS

    monkeypatch.setattr(OptimizedChatterboxTTS, "defaults", type(OptimizedChatterboxTTS.defaults)(max_new_tokens=50))
    words = ["--stream", "--dir", str(folder), "--device", "cpu", "--seed", "1", "--no-watermark"]
    assert main(["say", "Hello.", *words]) == 0
    samples = np.frombuffer(capfdbinary.readouterr().out, "<i2")
    model = OptimizedChatterboxTTS.from_local(folder, "cpu", enable_watermark=False)
    wanted = torch.cat(list(model.generate_stream("Hello.", seed=1)), 1)[0]
    assert len(samples) == len(wanted) == 50 * 960
    assert abs(samples / 32767 - wanted.numpy()).max() < 1e-4


def test_the_text_may_come_by_pipe(folder, tmp_path, monkeypatch):
    from chatterbox_opt.tts import OptimizedChatterboxTTS

    heard = []

    def generate(self, text, **_):
        heard.append(text)
        return torch.zeros(1, 9)

    monkeypatch.setattr(OptimizedChatterboxTTS, "generate", generate)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\ufeff“Hello.”".encode()), encoding="cp1252"))
    assert main(["say", "-", "-o", str(tmp_path / "a.wav"), "--dir", str(folder), "--device", "cpu"]) == 0
    assert heard == ["“Hello.”"]


def test_convert(folder, tmp_path):
    import numpy as np

    source = tmp_path / "in.wav"
    soundfile.write(source, 0.2 * np.sin(np.arange(32_000) / 20), 16_000)
    out = tmp_path / "out.wav"
    assert main(["convert", str(source), "-o", str(out), "--dir", str(folder), "--device", "cpu", "--seed", "1"]) == 0
    assert soundfile.info(out).duration == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["say", "Hi.", "--dir", "nowhere", "--device", "cpu"], "nowhere"),
        (["say", "Hi.", "--device", "abacus", "--dir", "."], "abacus"),
        (["say", "Hi.", "--lang", "fr"], "multilingual"),
        (["say", "Hi.", "--model", "mini", "--device", "cpu", "--decoder", "meanflow"], "s3gen_meanflow.safetensors"),
        (["say", "Hi.", "--model", "mini", "--device", "cpu", "--decoder", "quick"], "standard, meanflow"),
        (["convert", "missing.wav", "--dir", "nowhere", "--device", "cpu"], "nowhere"),
        (["say", "Hi.", "--dir", "nowhere", "-o", "no/folder.wav"], "no/folder.wav"),
        (["say", "Hi.", "--dir", "nowhere", "-o", "speech.m4a"], ".m4a"),
        (["say", "Hi.", "--dir", "nowhere", "-o", "speech.raw"], ".raw"),
        (["say", "  ", "--dir", "nowhere"], "no text"),
        (["say", "Hi.", "--dir", "nowhere", "--stream", "-o", "speech.wav"], "into a pipe"),
        (["convert", "missing.wav", "--dir", "nowhere", "-o", "."], "cannot be written"),
        (["say", "Hi.", "--dir", "nowhere", "--pronounce", "none.toml"], "none.toml"),
        (["say", "Hi.", "--dir", "nowhere", "--stream", "--takes", "2"], "leave out --takes"),
    ],
)
def test_errors_are_one_line_and_exit_1(words, said, capsys):
    assert main(words) == 1
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err) == 1
    assert said in err[0]


def test_a_checkpoint_is_not_written_over(folder, capsys):
    before = {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}
    assert main(["random-checkpoint", str(folder), "--family", "turbo"]) == 1
    assert "not empty" in capsys.readouterr().err
    assert before == {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}


def test_presets_and_decoders(tmp_path, monkeypatch):
    from chatterbox_opt.tts import OptimizedChatterboxTTS

    folder = tmp_path / "model"
    assert main(["random-checkpoint", str(folder), "--decoder", "meanflow"]) == 0
    models = []

    def generate(self, text, **_):
        models.append(self)
        return torch.zeros(1, 9)

    monkeypatch.setattr(OptimizedChatterboxTTS, "generate", generate)
    say = ["say", "Hello.", "-o", str(tmp_path / "a.wav"), "--dir", str(folder), "--device", "cpu"]
    for words in ([], ["--decoder", "meanflow"], ["--preset", "fast"], ["--preset", "fast", "--decoder", "standard"]):
        assert main([*say, *words]) == 0
    assert [m.config.flow.meanflow for m in models] == [False, True, True, False]
    assert [m.options.quantize for m in models] == [None, None, "int8", "int8"]
    assert [m.options.flow_steps for m in models] == [None, None, None, 6]


def test_a_packed_checkpoint_is_spoken_with(folder, tmp_path, capsys):
    from chatterbox_opt.tts import OptimizedChatterboxTTS

    out = tmp_path / "packed"
    assert main(["pack", str(folder), str(out), "--quantize", "int8", "--dtype", "float32"]) == 0
    assert f"{out}: dtype='float32'" in capsys.readouterr().out
    model = OptimizedChatterboxTTS.from_local(out, "cpu", enable_watermark=False)
    assert (model.options.quantize, model.options.dtype) == ("int8", "float32")
    before = sorted(out.iterdir())
    assert main(["pack", str(folder), str(out)]) == 1
    assert "not empty" in capsys.readouterr().err
    assert main(["pack", str(out), str(tmp_path / "again")]) == 1
    assert "packed already" in capsys.readouterr().err
    assert main(["say", "Hi.", "--dir", str(out), "--device", "cpu", "--preset", "exact"]) == 1
    assert "is packed as" in capsys.readouterr().err
    assert sorted(out.iterdir()) == before


def test_the_cache_is_opt_in(folder, tmp_path, monkeypatch):
    from chatterbox_opt.tts import OptimizedChatterboxTTS

    monkeypatch.setattr(OptimizedChatterboxTTS, "generate", lambda self, text, **_: torch.zeros(1, 9))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    say = ["say", "Hi.", "-o", str(tmp_path / "a.wav"), "--dir", str(folder), "--device", "cpu"]
    assert main(say) == 0
    assert not (tmp_path / "home").exists()
    assert main([*say, "--cache-packed"]) == 0
    assert len(list((tmp_path / "home" / "chatterbox_opt" / "packed").iterdir())) == 1


def test_a_hub_out_of_reach_is_told_in_the_shells_words(monkeypatch, capsys):
    from chatterbox_opt.weights import hub

    def unreachable(*_, **__):
        raise hub.HubUnreachable("the hub did not answer")

    monkeypatch.setattr(hub, "download", unreachable)
    assert main(["say", "Hello.", "--device", "cpu"]) == 1
    assert "--model mini" in capsys.readouterr().err


def test_misuse_exits_2():
    done = subprocess.run([sys.executable, "-m", "chatterbox_opt", "sing"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage" in done.stderr


def test_what_is_read_and_how_often_it_is_taken(folder, tmp_path, monkeypatch):
    from chatterbox_opt.scores import VoiceLikeness
    from chatterbox_opt.tts import OptimizedChatterboxTTS

    calls = []

    def generate(self, text, **how):
        calls.append(how)
        return torch.zeros(1, 9)

    monkeypatch.setattr(OptimizedChatterboxTTS, "generate", generate)
    tables = '{"words": {"SQL": "sequel"}, "voice": {"anna": {"words": {"SQL": "squeal"}}}}'
    (tmp_path / "names.json").write_text(tables)
    say = ["say", "Hello.", "-o", str(tmp_path / "a.wav"), "--dir", str(folder), "--device", "cpu"]
    respelt = ["--pronounce", str(tmp_path / "names.json")]
    assert main(say) == 0
    assert main([*say, "--spoken", "--takes", "3", "--retries", "2", "--score", "voice", *respelt]) == 0
    assert main([*say, "--spoken-by", "nemo", "--voice", "anna.wav", *respelt]) == 0
    plain, first, second = calls
    assert {k: plain[k] for k in ("spoken", "takes", "score", "retries")} == dict(
        spoken=False, takes=1, score=None, retries=0
    )
    assert "pronounce" not in plain
    assert (first["spoken"], first["takes"], first["retries"], first["pronounce"]("SQL")) == (True, 3, 2, "sequel")
    assert isinstance(first["score"], VoiceLikeness)
    assert (second["spoken"], second["pronounce"]("SQL")) == ("nemo", "squeal")
