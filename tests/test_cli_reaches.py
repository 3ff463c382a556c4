"""What is written in a shell reaches the server's settings, the book, the voice, the table and the model."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile

from chatterbox_opt import SamplingOptions
from chatterbox_opt.cli import main, model, parser
from chatterbox_opt.cli.serve import settings_of
from chatterbox_opt.serve.settings import MEGABYTE, ServeSettings
from chatterbox_opt.tts import OptimizedChatterboxTTS
from chatterbox_opt.tts_turbo import OptimizedChatterboxTurboTTS


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The options that name a model."""
    folder = tmp_path_factory.mktemp("tts") / "model"
    assert main(["random-checkpoint", str(folder), "--size", "tiny", "--seed", "3"]) == 0
    return ["--dir", str(folder), "--device", "cpu"]


@pytest.fixture
def names(tmp_path):
    """A file of respellings."""
    file = tmp_path / "names.json"
    file.write_text('{"words": {"SQL": "sequel"}}')
    return file


def test_every_option_of_serve_reaches_the_settings(tmp_path, names):
    (tmp_path / "key").write_text(" secret\n")
    given = {
        "--host": "0.0.0.0", "--port": "1234", "--api-key-file": str(tmp_path / "key"), "--voices": "kept",
        "--max-waiting": "3", "--max-text": "500", "--max-upload-mb": "7", "--allow-origin": "http://a.example",
        "--pronounce": str(names), "--wyoming": "10200", "--drain-seconds": "9",
    }  # fmt: skip
    serve = parser()._subparsers._group_actions[0].choices["serve"]
    own = {action.option_strings[-1] for action in serve._optionals._group_actions}
    assert own - {"--help", "--api-key"} == set(given)
    words = ["serve", "--model", "mini", *(word for option in given.items() for word in option)]
    settings = settings_of(parser().parse_args([*words, "--allow-origin", "http://b.example"]))
    assert settings.pronounce("SQL") == "sequel"
    assert dataclasses.replace(settings, pronounce=None) == ServeSettings(
        model_id="mini", host="0.0.0.0", port=1234, api_key="secret", voices_dir="kept", max_waiting=3, max_text=500,
        max_upload=7 * MEGABYTE, allowed_origins=("http://a.example", "http://b.example"), wyoming_port=10200,
        drain_seconds=9.0,
    )
    assert settings_of(parser().parse_args(["serve", "--api-key", "other"])).api_key == "other"
    assert settings_of(parser().parse_args(["serve"])) == ServeSettings(voices_dir="voices")


def test_every_option_of_read_reaches_the_book(tmp_path, names, monkeypatch):
    from chatterbox_opt.reading import book

    calls, loaded, aligner = [], object(), object()
    monkeypatch.setattr(book, "read_aloud", lambda *given, **how: calls.append((given, how)) or [])
    monkeypatch.setattr(model, "load", lambda args: loaded)
    monkeypatch.setattr("chatterbox_opt.cli.speech.aligner", lambda: aligner)
    script, out, voice = (tmp_path / name for name in ("a.txt", "a.wav", "anna.wav"))
    script.write_text("Hello.")
    voice.write_bytes(b"RIFF")
    (tmp_path / "cast.toml").write_text("[Ben]\nseed = 3\n")
    read = ["read", str(script), "-o", str(out)]
    assert main(read) == 0
    more = ["--as", "markdown", "--voices", str(tmp_path / "cast.toml"), "--voice", str(voice), "--lang", "fr"]
    more += ["--model", "multilingual", "--seed", "5", "--chapters", "--captions", "vtt", "--words", "--markup"]
    more += ["--loudness", "-20", "--no-breath", "--work", str(tmp_path / "work"), "--spoken", "--takes", "2"]
    assert main([*read, *more, "--pronounce", str(names), "--retries", "1"]) == 0
    (given, plain), (_, how) = calls
    assert given == (loaded, script, out)
    del plain["progress"], how["progress"]
    assert plain == dict(
        cast={}, kind=None, chapters=False, captions=None, markup=False, align=None, seed=0, breath=True, loudness=None,
        work=None, spoken=False, pronounce=None, takes=1, retries=0, score=None,
    )
    cast, respelt, score = how.pop("cast"), how.pop("pronounce"), how.pop("score")
    assert (cast["narrator"].voice, cast["Ben"].seed) == (voice, 3)
    assert respelt("SQL") == "sequel"
    assert type(score).__name__ == "PlausibleLength"
    assert how == dict(
        kind="markdown", chapters=True, captions="vtt", markup=True, align=aligner, seed=5, breath=False,
        loudness=-20.0, work=tmp_path / "work", language_ids="fr", spoken=True, takes=2, retries=1,
    )


def test_a_recording_is_converted_to_the_voice_of_another(source, tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.1, 48_000)
    soundfile.write(tmp_path / "in.wav", 0.2 * np.sin(np.arange(24_000) / 20), 24_000)
    soundfile.write(tmp_path / "anna.wav", noise, 24_000)
    convert = ["convert", str(tmp_path / "in.wav"), *source, "--seed", "1", "--no-watermark"]

    def samples(*words):
        assert main([*convert, "-o", str(tmp_path / "out.wav"), *words]) == 0
        return soundfile.read(tmp_path / "out.wav")[0]

    own, again, target = samples(), samples(), samples("--target", str(tmp_path / "anna.wav"))
    assert np.array_equal(own, again)
    assert abs(own - target[: len(own)]).max() > 0.01


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_table_is_written_into_shards(kind, source, tmp_path, monkeypatch):
    if kind == "parquet":
        pytest.importorskip("pyarrow", reason="pip install 'chatterbox-opt[parquet]'")
    monkeypatch.setattr(OptimizedChatterboxTTS, "defaults", SamplingOptions(max_new_tokens=8))
    table, out = tmp_path / "a.jsonl", tmp_path / "out"
    table.write_text("".join(json.dumps({"text": "Hello.", "id": name}) + "\n" for name in "abc"))
    words = ["batch", str(table), "-o", str(out), *source, "--shard", "2"]
    assert main([*words, "--parquet"] if kind == "parquet" else words) == 0
    assert len(list(out.rglob(f"*.{kind}"))) == 2


@pytest.mark.parametrize("name", model.MODELS)
def test_each_model_has_its_front_door(name, monkeypatch):
    from chatterbox_opt.mtl_tts import OptimizedChatterboxMultilingualTTS

    asked = []
    for door in (OptimizedChatterboxTTS, OptimizedChatterboxMultilingualTTS, OptimizedChatterboxTurboTTS):
        for way in ("from_pretrained", "from_mini"):
            tell = lambda device, door=door, way=way, **how: asked.append((door, way, device, how))  # noqa: E731
            monkeypatch.setattr(door, way, tell, raising=False)
    words = ["--device", "cpu", "--quantize", "int8", "--preset", "fast", "--decoder", "standard", "--no-watermark"]
    model.load(parser().parse_args(["say", "Hi.", "--model", name, *words, "--cache-packed"]))
    door = {"multilingual": OptimizedChatterboxMultilingualTTS, "turbo": OptimizedChatterboxTurboTTS}
    door["nano"] = OptimizedChatterboxTurboTTS
    how = dict(quantize="int8", preset="fast", decoder="standard", enable_watermark=False, cache_packed=True)
    how |= {"nano": name == "nano"} if name in ("turbo", "nano") else {}
    way = "from_mini" if name == "mini" else "from_pretrained"
    assert asked == [(door.get(name, OptimizedChatterboxTTS), way, "cpu", how)]
