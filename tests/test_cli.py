"""The command line: its files, messages and exit status."""

import io
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from chatterbox_opt import SamplingOptions, __version__
from chatterbox_opt.cli import main, parser
from chatterbox_opt.cli.model import with_absolute_paths
from chatterbox_opt.scores import VoiceLikeness
from chatterbox_opt.tts import OptimizedChatterboxTTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("tts") / "model"
    assert main(["random-checkpoint", str(where), "--size", "tiny", "--seed", "3"]) == 0
    return where


@pytest.fixture
def source(folder):
    """The options that name the model."""
    return ["--dir", str(folder), "--device", "cpu"]


@pytest.fixture
def eight_tokens(monkeypatch):
    """Speech ends after 0.32 s."""
    monkeypatch.setattr(OptimizedChatterboxTTS, "defaults", SamplingOptions(max_new_tokens=8))


@pytest.fixture
def spoken(monkeypatch):
    """Collects (model, text, keywords) of each call of generate(), which returns silence."""
    calls = []

    def generate(self, text, **keywords):
        calls.append((self, text, keywords))
        return torch.zeros(1, 9)

    monkeypatch.setattr(OptimizedChatterboxTTS, "generate", generate)
    return calls


@pytest.mark.usefixtures("eight_tokens")
def test_say(source, tmp_path, capsys):
    out = tmp_path / "hello.wav"
    assert main(["say", "Hello.", "-o", str(out), *source, "--seed", "1"]) == 0
    wav, rate = soundfile.read(out)
    assert rate == 24_000
    assert len(wav)
    printed = capsys.readouterr()
    assert "hello.wav" in printed.out


def test_a_stream_goes_to_standard_output(folder, source, capfdbinary, monkeypatch):
    """Samples, and nothing else."""
    monkeypatch.setattr(OptimizedChatterboxTTS, "defaults", SamplingOptions(max_new_tokens=50))
    assert main(["say", "Hello.", "--stream", *source, "--seed", "1", "--no-watermark"]) == 0
    samples = np.frombuffer(capfdbinary.readouterr().out, "<i2")
    model = OptimizedChatterboxTTS.from_local(folder, "cpu", enable_watermark=False)
    wanted = torch.cat(list(model.generate_stream("Hello.", seed=1)), 1)[0]
    assert len(samples) == len(wanted) == 50 * 960
    assert abs(samples / 32767 - wanted.numpy()).max() < 1e-4


def test_the_text_may_come_by_pipe(source, tmp_path, monkeypatch, spoken):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\ufeff“Hello.”".encode()), encoding="cp1252"))
    assert main(["say", "-", "-o", str(tmp_path / "a.wav"), *source]) == 0
    assert [text for _, text, _ in spoken] == ["“Hello.”"]


def test_a_text_in_another_encoding_is_told(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Grüße.".encode("latin-1"))))
    assert main(["say", "-", "--dir", "nowhere"]) == 1
    assert "standard input: it is not UTF-8" in capsys.readouterr().err


@pytest.mark.usefixtures("eight_tokens")
def test_captions(source, tmp_path):
    words = [*source, "--seed", "1"]
    plain, out, captions = (tmp_path / name for name in ("plain.wav", "a.wav", "a.vtt"))
    words += ["--steps", "2", "--top-p", "0.9"]
    assert main(["say", "Hello.", "-o", str(plain), *words]) == 0
    assert main(["say", "Hello.", "-o", str(out), "--captions", str(captions), *words]) == 0
    assert out.read_bytes() == plain.read_bytes()
    assert captions.read_text() == "WEBVTT\n\n00:00:00.000 --> 00:00:00.320\nHello.\n"
    marked = tmp_path / "b.json"
    text = "One. [pause 0.5s] Two."
    assert main(["say", text, "-o", str(out), "--captions", str(marked), "--markup", "--loudness", "-20", *words]) == 0
    assert soundfile.info(out).duration == pytest.approx(2 * 0.32 + 0.5)


@pytest.mark.usefixtures("eight_tokens")
def test_read(source, tmp_path, capsys):
    script, cast, out = tmp_path / "a.txt", tmp_path / "cast.toml", tmp_path / "book.wav"
    script.write_text("Chapter 1\n\nAnna: Hello.\n\nChapter 2\n\nThe end.")
    cast.write_text("[Anna]\nseed = 3\n")
    command = ["read", str(script), "-o", str(out), "--voices", str(cast), "--chapters", "--captions", "srt"]
    assert main([*command, *source]) == 0
    printed = capsys.readouterr()
    names = ["book-01.wav", "book-01.srt", "book-02.wav", "book-02.srt"]
    assert printed.out.split() == [str(tmp_path / name) for name in names]
    assert "Hello." in (tmp_path / "book-01.srt").read_text()


def test_options_of_read_reach_the_book(source, tmp_path, monkeypatch):
    from chatterbox_opt.reading import book
    calls = []
    monkeypatch.setattr(book, "read_aloud", lambda *_, **how: calls.append(how) or [])
    (tmp_path / "a.txt").write_text("Hello.")
    (tmp_path / "names.json").write_text('{"words": {"SQL": "sequel"}}')
    (tmp_path / "cast.toml").write_text("[Anna]\ntakes = 2\n")
    read = ["read", str(tmp_path / "a.txt"), "-o", str(tmp_path / "a.wav"), *source]
    assert main(read) == 0
    how = ["--spoken", "--takes", "3", "--retries", "2", "--pronounce", str(tmp_path / "names.json")]
    assert main([*read, *how]) == 0
    assert main([*read, "--voices", str(tmp_path / "cast.toml"), "--score", "voice"]) == 0
    names = ("spoken", "pronounce", "takes", "retries", "score")
    plain, first, second = ({name: call[name] for name in names} for call in calls)
    assert plain == dict(spoken=False, pronounce=None, takes=1, retries=0, score=None)
    assert (first["spoken"], first["takes"], first["retries"], first["pronounce"]("SQL")) == (True, 3, 2, "sequel")
    assert isinstance(second["score"], VoiceLikeness), "for the role that has takes"


def test_an_interrupted_reading_says_how_to_continue(source, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(OptimizedChatterboxTTS, "speak", interrupted)
    (tmp_path / "a.txt").write_text("Hello.")
    command = ["read", str(tmp_path / "a.txt"), "-o", str(tmp_path / "a.wav"), *source]
    assert main(command) == 130
    assert "the same command continues" in capsys.readouterr().err


def test_convert(source, tmp_path):
    recording = tmp_path / "in.wav"
    soundfile.write(recording, 0.2 * np.sin(np.arange(32_000) / 20), 16_000)
    out = tmp_path / "out.wav"
    assert main(["convert", str(recording), "-o", str(out), *source, "--seed", "1"]) == 0
    assert soundfile.info(out).duration == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["say", "Hi.", "--dir", "nowhere", "--device", "cpu"], "nowhere"),
        (["say", "Hi.", "--device", "abacus", "--dir", "."], "abacus"),
        (["say", "Hi.", "--lang", "fr"], "multilingual"),
        (["say", "Hi.", "--model", "mini", "--device", "cpu", "--decoder", "quick"], "standard, meanflow"),
        (["convert", __file__, "--dir", "nowhere", "--device", "cpu"], "nowhere"),
        (["convert", "missing.wav", "--dir", "nowhere"], "missing.wav"),
        (["convert", __file__, "--target", "missing.wav", "--dir", "nowhere"], "missing.wav"),
        (["say", "Hi.", "--voice", "missing.wav", "--dir", "nowhere"], "missing.wav"),
        (["read", __file__, "-o", "a.wav", "--voice", "missing.wav", "--dir", "nowhere"], "missing.wav"),
        (["say", "Hi.", "--dir", "nowhere", "-o", "no/folder.wav"], "no/folder.wav"),
        (["say", "Hi.", "--dir", "nowhere", "-o", "speech.m4a"], ".m4a"),
        (["say", "Hi.", "--dir", "nowhere", "-o", "speech.raw"], ".raw"),
        (["say", "  ", "--dir", "nowhere"], "no text"),
        (["say", "Hello \udcff there.", "--dir", "nowhere"], "not UTF-8, at character 7"),
        (["say", "Hi.", "--dir", "nowhere", "--stream", "-o", "speech.wav"], "into a pipe"),
        (["convert", "missing.wav", "--dir", "nowhere", "-o", "."], "cannot be written"),
        (["say", "Hi.", "--dir", "nowhere", "--captions", "a.sub"], "srt, vtt, json"),
        (["say", "Hi.", "--dir", "nowhere", "--captions", "no/a.srt"], "there is no folder"),
        (["say", "Hi.", "--dir", "nowhere", "--words"], "--captions"),
        (["say", "Hi.", "--dir", "nowhere", "--stream", "--captions", "a.srt"], "need the whole"),
        (["read", "missing.txt", "-o", "a.wav", "--dir", "nowhere"], "missing.txt"),
        (["read", ".", "-o", "a.wav", "--dir", "nowhere"], ".: this is a folder"),
        (["batch", "missing.csv", "-o", "out", "--dir", "nowhere"], "missing.csv: there is no such file"),
        (["read", "missing.txt", "-o", "a.docx", "--dir", "nowhere"], "ends in .wav"),
        (["read", "missing.txt", "-o", "a.wav", "--dir", "nowhere", "--voices", "none.toml"], "missing.txt"),
        (["read", "missing.txt", "-o", "a.wav", "--lang", "fr"], "multilingual"),
        (["say", "Hi.", "--dir", "nowhere", "--pronounce", "none.toml"], "none.toml"),
        (["say", "Hi.", "--dir", "nowhere", "--stream", "--takes", "2"], "leave out --takes"),
        (["say", "Hi.", "--dir", "nowhere"], "without --dir"),
        (["say", "Hi.", "--model", "mini", "--device", "cpu", "--voice", __file__], "--model english"),
        (["say", "Hi.", "--dir", "nowhere", "-o", "speech.m4a"], ".wav, .flac, .ogg and .mp3"),
        (["say", "Hi.", "--dir", "nowhere", "--score", "words"], "give --takes 2"),
        (["say", "Hi.", "--dir", "nowhere", "--takes", "0"], "takes=0"),
        (["say", "Hi.", "--dir", "nowhere", "--temperature", "-1"], "temperature"),
        (["say", "Hi.", "--dir", "nowhere", "--exaggeration", "11"], "exaggeration"),
        (["say", "Hi.", "--dir", "nowhere", "--loudness", "3"], "loudness"),
        (["say", "Hi.", "--dir", "nowhere", "--steps", "0"], "n_cfm_timesteps"),
        (["read", __file__, "-o", "a.wav", "--dir", "nowhere", "--score", "voice"], "give --takes 2"),
    ],
)
def test_errors_are_one_line_and_exit_1(words, message, capsys):
    assert main(words) == 1
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err) == 1
    assert message in err[0]


def test_a_checkpoint_is_not_overwritten(folder, capsys):
    before = {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}
    assert main(["random-checkpoint", str(folder), "--family", "turbo"]) == 1
    assert "not empty" in capsys.readouterr().err
    assert before == {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}


def test_presets_and_decoders(tmp_path, monkeypatch, capsys, spoken):
    folder = tmp_path / "model"
    assert main(["random-checkpoint", str(folder), "--decoder", "meanflow"]) == 0
    monkeypatch.setattr("chatterbox_opt.presets.LARGE_T3", 0)  # as of a published size
    say = ["say", "Hello.", "-o", str(tmp_path / "a.wav"), "--dir", str(folder), "--device", "cpu"]
    for words in ([], ["--decoder", "meanflow"], ["--preset", "fast"], ["--preset", "fast", "--decoder", "standard"]):
        assert main([*say, *words]) == 0
    models = [model for model, *_ in spoken]
    assert [m.config.flow.meanflow for m in models] == [False, True, True, False]
    assert [m.options.quantize for m in models] == [None, None, "int8", "int8"]
    assert [m.options.flow_steps for m in models] == [None, None, None, 6]
    (folder / "s3gen_meanflow.safetensors").unlink()
    assert main([*say, "--decoder", "meanflow"]) == 1
    assert "s3gen_meanflow.safetensors" in capsys.readouterr().err


def test_pack_and_say(folder, tmp_path, capsys):
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
    assert main(["say", "Hi.", "--dir", str(out), "--device", "cpu", "--quantize", "int4"]) == 1
    assert "is packed as" in capsys.readouterr().err
    assert sorted(out.iterdir()) == before


@pytest.mark.usefixtures("spoken")
def test_a_packed_folder_names_its_device(folder, tmp_path, monkeypatch):
    """As the documents have it, without --device, on a machine that has a better one."""
    out = tmp_path / "packed"
    assert main(["pack", str(folder), str(out)]) == 0
    monkeypatch.setattr("chatterbox_opt.cli.model.best_device", lambda: "cuda")
    assert main(["say", "Hi.", "--dir", str(out), "-o", str(tmp_path / "a.wav")]) == 0


def test_paths_hold_for_workers_in_other_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.safetensors").touch()
    args = parser().parse_args(["batch", "a.csv", "-o", "out", "--dir", "model", "--decoder", "mine.safetensors"])
    with_absolute_paths(args)
    assert (args.dir, args.decoder) == (tmp_path / "model", str(tmp_path / "mine.safetensors"))
    (tmp_path / "model").mkdir()
    for path in ("meanflow", "standard", "here.safetensors", "model/here.safetensors"):
        (tmp_path / path).touch()
    for name in ("meanflow", "standard", "here.safetensors"):  # the last is in the model's folder too
        args.decoder = name
        assert with_absolute_paths(args).decoder == name


@pytest.mark.usefixtures("spoken")
def test_the_cache_is_opt_in(source, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    say = ["say", "Hi.", "-o", str(tmp_path / "a.wav"), *source]
    assert main(say) == 0
    assert not (tmp_path / "home").exists()
    assert main([*say, "--cache-packed"]) == 0
    assert len(list((tmp_path / "home" / "chatterbox_opt" / "packed").iterdir())) == 1


def test_the_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"chatterbox-opt {__version__}\n"


def test_misuse_exits_2():
    done = subprocess.run([sys.executable, "-m", "chatterbox_opt", "sing"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage" in done.stderr


@pytest.mark.parametrize(
    ("system", "mps", "mlx", "best"),
    [
        (("Darwin", "arm64"), True, True, "mlx"), (("Darwin", "arm64"), True, False, "mps"),
        (("Darwin", "x86_64"), True, True, "mps"), (("Darwin", "arm64"), False, True, "cpu"),
        (("Linux", "x86_64"), False, True, "cpu"),
    ],
)
def test_auto_is_mlx_on_apple_silicon_if_installed(system, mps, mlx, best, monkeypatch):
    import platform

    from chatterbox_opt import checks, cli
    from chatterbox_opt.cli.model import source

    monkeypatch.setattr(platform, "system", lambda: system[0])
    monkeypatch.setattr(platform, "machine", lambda: system[1])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(checks, "missing_mlx", lambda: None if mlx else "No module named 'mlx'")
    asked = []

    class Door:
        @classmethod
        def from_mini(cls, device, **_):
            asked.append(device)

    for command in ("say", "serve"):
        words = [command, "Hi.", "--model", "mini"] if command == "say" else [command, "--model", "mini"]
        source(Door, cli.parser().parse_args(words))
    assert asked == [best, best]


def test_missing_mlx_says_what_to_install(monkeypatch, capsys):
    from chatterbox_opt import checks

    monkeypatch.setattr(checks, "missing_mlx", lambda: "No module named 'mlx'")
    assert main(["say", "Hi.", "--model", "mini", "--device", "mlx"]) == 1
    assert "pip install 'chatterbox-opt[mlx]'" in capsys.readouterr().err


def test_options_of_say_reach_the_call(source, tmp_path, spoken):
    tables = '{"words": {"SQL": "sequel"}, "voice": {"anna": {"words": {"SQL": "squeal"}}}}'
    (tmp_path / "names.json").write_text(tables)
    (tmp_path / "anna.wav").write_bytes(b"RIFF")
    say = ["say", "Hello.", "-o", str(tmp_path / "a.wav"), *source]
    respelt = ["--pronounce", str(tmp_path / "names.json")]
    assert main(say) == 0
    assert main([*say, "--spoken", "--takes", "3", "--retries", "2", "--score", "voice", *respelt]) == 0
    assert main([*say, "--spoken-by", "nemo", "--voice", str(tmp_path / "anna.wav"), *respelt]) == 0
    more = ["--seed", "5", "--markup", "--breath", "--loudness", "-20"]
    assert main([*say, "--top-p", "0.9", "--max-new-tokens", "50", "--steps", "4", *more]) == 0
    plain, first, second, third = (keywords for *_, keywords in spoken)
    assert {k: plain[k] for k in ("spoken", "takes", "score", "retries")} == dict(
        spoken=False, takes=1, score=None, retries=0
    )
    assert "pronounce" not in plain
    assert (first["spoken"], first["takes"], first["retries"], first["pronounce"]("SQL")) == (True, 3, 2, "sequel")
    assert isinstance(first["score"], VoiceLikeness)
    assert (second["spoken"], second["pronounce"]("SQL")) == ("nemo", "squeal")
    shape = dict(seed=None, markup=False, breath=False, loudness=None)
    assert {k: plain[k] for k in shape} == shape
    assert {k: third[k] for k in shape} == dict(seed=5, markup=True, breath=True, loudness=-20.0)
    sampling = dict(top_p=0.9, max_new_tokens=50, n_cfm_timesteps=4)
    assert sampling.items() <= third.items()
    assert not sampling.keys() & plain.keys()
