"""docs/serving.md, the README and deploy/ agree with the server."""

import json
import re
import shlex
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
FILES = ["docs/serving.md", "deploy/Dockerfile", "deploy/compose.yaml", "deploy/chatterbox-opt.service"]
OTHERS = {"--gpus", "--build-arg", "--index-url", "--no-cache-dir", "--create-home", "--uid", "--start-period",
          "--interval", "--now"}  # docker's, pip's and systemd's


@pytest.mark.parametrize("file", FILES)
def test_every_option_exists(file, capsys):
    from chatterbox_opt.cli import main

    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    known = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", (ROOT / file).read_text(encoding="utf-8")))
    assert named - known - OTHERS == set()


@pytest.mark.parametrize("file", ["docs/serving.md", "README.md"])
def test_the_curl_speaks(mini, file):
    text = (ROOT / file).read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith("curl ")]
    words = shlex.split(line)
    body = json.loads(words[words.index("-d") + 1])
    kind, value = words[words.index("-H") + 1].split(": ")
    path = words[1].removeprefix("http://127.0.0.1:8004")
    answer = httpx.post(mini.url + path, json=body, headers={kind: value}, timeout=60)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == {"wav": "audio/wav", "mp3": "audio/mpeg"}[words[-1].split(".")[-1]]


def test_the_session_speaks(mini):
    (lines,) = re.findall(r"```json\n(.*?)```", PAGE, re.S)
    with connect(f"ws://127.0.0.1:{mini.port}/v1/audio/speech/stream") as socket:
        for line in lines.splitlines():
            socket.send(line)
        received = [json.loads(item) for item in socket if isinstance(item, str)]
    assert [item["type"] for item in received] == ["audio.start", "audio.done"] * 2 + ["session.done"]


def test_the_fields_of_the_page_are_those_of_the_server(mini):
    schema = httpx.get(f"{mini.url}/openapi.json").json()["components"]["schemas"]["SpeechRequest"]["properties"]
    for name in schema:
        assert f"`{name}`" in PAGE, name


def test_the_limits_it_names_are_the_defaults():
    from chatterbox_opt.serve.limits import MOST_FORMS
    from chatterbox_opt.serve.recordings import MAX_RATE, MAX_SECONDS
    from chatterbox_opt.serve.service import WHOLE, WHOLE_PAUSES
    from chatterbox_opt.serve.settings import MEGABYTE, ServeSettings
    from chatterbox_opt.serve.voices import ON_DEVICE

    defaults = ServeSettings()
    assert (defaults.max_waiting, defaults.max_text, defaults.max_upload // MEGABYTE) == (64, 100_000, 25)
    assert (defaults.max_voices, defaults.stall_seconds, MAX_SECONDS, defaults.port) == (1000, 60, 600, 8004)
    assert (defaults.host, MAX_RATE) == ("127.0.0.1", 192_000)
    assert (WHOLE, WHOLE_PAUSES, ON_DEVICE, MOST_FORMS) == (5000, 60, 32, 16)
    for text in (
        "(64)", "(100 000)", "(25)", "recordings of 10 minutes", "192 kHz", "1000 voices", "16 recordings",
        "5000 letters", "a minute of pauses", "the last 32", "96 kbit/s", "12 kB per second of sound as mp3",
    ):
        assert text in PAGE
