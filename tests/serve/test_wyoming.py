"""Home Assistant's protocol by its own client."""

import asyncio
import contextlib
import json
import socket

import pytest
from serving import load_mini, quiet_within, ready, running

from chatterbox_opt.audio.io import pcm16

pytest.importorskip("wyoming", reason="wyoming is not installed: pip install -e '.[wyoming]'")

from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.tts import (
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    SynthesizeStopped,
    SynthesizeVoice,
)

TEXT = "The kitchen light is on, and the door is locked."


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with running(tmp_path_factory.mktemp("voices"), load_mini, wyoming_port=port) as one:
        yield ready(one), port


def exchange(port, events, until):
    async def talk():
        async with AsyncTcpClient("127.0.0.1", port) as client:
            for event in events:
                await client.write_event(event.event())
            got = []
            while event := await asyncio.wait_for(client.read_event(), 60):
                got.append(event)
                if until.is_type(event.type) or Error.is_type(event.type):
                    return got

    return asyncio.run(talk())


def sound(got):
    assert AudioStart.is_type(got[0].type)
    start = AudioStart.from_event(got[0])
    assert (start.rate, start.width, start.channels) == (24_000, 2, 1)
    return b"".join(AudioChunk.from_event(event).audio for event in got if AudioChunk.is_type(event.type))


def test_describe(home):
    _, port = home
    (event,) = exchange(port, [Describe()], Info)
    (program,) = Info.from_event(event).tts
    assert program.supports_synthesize_streaming
    assert program.voices[0].name == "default"
    assert program.voices[0].languages == ["en"]


def test_a_whole_text(home):
    _, port = home
    got = exchange(port, [Synthesize(TEXT, voice=SynthesizeVoice(name="default"))], AudioStop)
    assert [e.type for e in got if AudioStart.is_type(e.type)] == ["audio-start"]
    assert 0.8 < len(sound(got)) / 48_000 < 8


def test_a_text_in_parts(home):
    """As Home Assistant sends it: parts, then the whole once more for those who take no parts."""
    _, port = home
    parts = [SynthesizeChunk(word + " ") for word in (TEXT + " " + TEXT).split()]
    got = exchange(
        port, [SynthesizeStart(), *parts, Synthesize(TEXT + " " + TEXT), SynthesizeStop()], SynthesizeStopped
    )
    kinds = [event.type for event in got]
    assert kinds[0] == "audio-start"
    assert kinds[-2:] == ["audio-stop", "synthesize-stopped"]
    assert kinds.count("audio-start") == kinds.count("audio-stop") == 1
    assert len(sound(got)) > 1.5 * 48_000


def test_ping_and_what_is_unknown(home):
    _, port = home
    got = exchange(port, [_Raw("unheard-of"), Ping(text="x")], Pong)
    assert Pong.from_event(got[-1]).text == "x"


@pytest.mark.parametrize(
    ("event", "word"),
    [
        (Synthesize(TEXT, voice=SynthesizeVoice(name="nobody")), "nobody"),
        (Synthesize(TEXT, voice=SynthesizeVoice(language="fr")), "fr"),
        (Synthesize("x " * 60_000), "100000"),
    ],
)
def test_errors_are_told_and_the_line_stays(home, event, word):
    _, port = home
    got = exchange(port, [event, Ping(text="still there")], Pong)
    assert Error.is_type(got[0].type)
    assert word in Error.from_event(got[0]).text


def test_garbage_does_no_harm(home):
    _, port = home
    for data in (b"\n", b"{}\n", b"[1]\n", b'{"type": 3}\n', b'{"type": "synthesize"}\n', b"\xff\xfe\n", b"x" * 70_000,
                 b'{"type": "synthesize", "data_length": -5}\n', b'{"type": "synthesize", "data": 5}\n'):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as line:
            line.sendall(data)
            line.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while line.recv(4096):
                    pass
    assert exchange(port, [Ping(text="x")], Pong)


def test_a_client_that_leaves_frees_its_rows(home):
    one, port = home
    with socket.create_connection(("127.0.0.1", port), timeout=5) as line:
        line.sendall(json.dumps({"type": "synthesize", "data": {"text": TEXT * 20}}).encode() + b"\n")
        line.recv(100)
        assert one.model.stats()["calls"]
    assert quiet_within(one.service)


def test_the_same_words_as_the_library(home):
    """Seeds cannot be given here: what is compared is what greedy drawing says."""
    one, port = home
    before = one.model.defaults
    try:
        one.model.defaults = type(before)(temperature=0.0)
        got = exchange(port, [Synthesize(TEXT)], AudioStop)
        wanted = b"".join(map(pcm16, one.model.generate_stream(TEXT, seed=1)))
        assert abs(len(sound(got)) - len(wanted)) <= 48_000 * 0.05
    finally:
        one.model.defaults = before


class _Raw:
    def __init__(self, kind):
        self.kind = kind

    def event(self):
        return Event(type=self.kind)
