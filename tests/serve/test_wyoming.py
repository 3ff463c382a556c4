"""Home Assistant's protocol by its own client."""

import asyncio
import contextlib
import json
import socket
from types import SimpleNamespace

import pytest
from serving import free_port, goes_idle, load_mini, ready, running
from threads import soon

from chatterbox_opt.audio.io import pcm16
from chatterbox_opt.serve.settings import ServeSettings

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
def wyoming_server(tmp_path_factory):
    port = free_port()
    with running(tmp_path_factory.mktemp("voices"), load_mini, wyoming_port=port) as server:
        yield ready(server), port


def exchange(port, events, until=None):
    """Returns the events that come, up to one of this kind or an error; up to the connection's end without it."""

    async def talk():
        async with AsyncTcpClient("127.0.0.1", port) as client:
            for event in events:
                await client.write_event(event.event())
            received = []
            while event := await asyncio.wait_for(client.read_event(), 60):
                received.append(event)
                if until and (until.is_type(event.type) or Error.is_type(event.type)):
                    break
            return received

    return asyncio.run(talk())


def sound(received):
    assert AudioStart.is_type(received[0].type)
    start = AudioStart.from_event(received[0])
    assert (start.rate, start.width, start.channels) == (24_000, 2, 1)
    return b"".join(AudioChunk.from_event(event).audio for event in received if AudioChunk.is_type(event.type))


def test_describe(wyoming_server):
    _, port = wyoming_server
    (event,) = exchange(port, [Describe()], Info)
    (program,) = Info.from_event(event).tts
    assert program.supports_synthesize_streaming
    assert program.voices[0].name == "default"
    assert program.voices[0].languages == ["en"]


def test_a_whole_text(wyoming_server):
    _, port = wyoming_server
    received = exchange(port, [Synthesize(TEXT, voice=SynthesizeVoice(name="default"))], AudioStop)
    assert [e.type for e in received if AudioStart.is_type(e.type)] == ["audio-start"]
    assert 0.8 < len(sound(received)) / 48_000 < 8


def test_a_text_in_parts(wyoming_server):
    """Home Assistant sends the parts, then the whole text for servers that take no parts."""
    _, port = wyoming_server
    parts = [SynthesizeChunk(message + " ") for message in (TEXT + " " + TEXT).split()]
    received = exchange(
        port, [SynthesizeStart(), *parts, Synthesize(TEXT + " " + TEXT), SynthesizeStop()], SynthesizeStopped
    )
    kinds = [event.type for event in received]
    assert kinds[0] == "audio-start"
    assert kinds[-2:] == ["audio-stop", "synthesize-stopped"]
    assert kinds.count("audio-start") == kinds.count("audio-stop") == 1
    assert len(sound(received)) > 1.5 * 48_000


def test_ping_and_unknown_events(wyoming_server):
    _, port = wyoming_server
    received = exchange(port, [_Raw("unheard-of"), Ping(text="x")], Pong)
    assert Pong.from_event(received[-1]).text == "x"


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (Synthesize(TEXT, voice=SynthesizeVoice(name="nobody")), "nobody"),
        (Synthesize(TEXT, voice=SynthesizeVoice(language="fr")), "fr"),
        (Synthesize("x " * 60_000), "100000"),
    ],
)
@pytest.mark.parametrize("in_parts", [False, True])
def test_an_error_ends_the_connection(wyoming_server, event, message, in_parts):
    """Home Assistant heeds no errors, and would wait for the speech's end."""
    server, port = wyoming_server
    parts = [SynthesizeStart(voice=event.voice), SynthesizeChunk(event.text), event, SynthesizeStop()]
    (received,) = exchange(port, parts if in_parts else [event])
    assert message in Error.from_event(received).text
    assert server.service.idle()


@pytest.mark.parametrize("text", ["", " \n", "🙂"])
def test_nothing_to_say_has_an_end(wyoming_server, text):
    _, port = wyoming_server
    assert exchange(port, [Synthesize(text)], AudioStop)[-1].type == "audio-stop"
    received = exchange(port, [SynthesizeStart(), SynthesizeChunk(text), SynthesizeStop()], SynthesizeStopped)
    assert [received[i].type for i in (0, -2, -1)] == ["audio-start", "audio-stop", "synthesize-stopped"]


def test_a_text_in_parts_that_fails_on_its_way_is_not_spoken_again(wyoming_server, monkeypatch):
    server, port = wyoming_server
    real, asked = server.model.submit, []

    def once(text, **how):
        asked.append(text)
        if len(asked) > 1:
            raise ValueError("not this one")
        return real(text, **how)

    monkeypatch.setattr(server.model, "submit", once)
    parts = [SynthesizeStart(), SynthesizeChunk(f"{TEXT} {TEXT} And "), Synthesize(f"{TEXT} {TEXT}"), SynthesizeStop()]
    received = [event.type for event in exchange(port, parts)]
    assert received.count("audio-start") == 1
    assert received[-1] == "error"
    assert len(asked) == 2


def test_malformed_events_do_not_stop_the_server(wyoming_server):
    _, port = wyoming_server
    for data in (b"\n", b"{}\n", b"[1]\n", b'{"type": 3}\n', b'{"type": "synthesize"}\n', b"\xff\xfe\n", b"x" * 70_000,
                 b'{"type": "synthesize", "data_length": -5}\n', b'{"type": "synthesize", "data": 5}\n'):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while connection.recv(4096):
                    pass
    assert exchange(port, [Ping(text="x")], Pong)


@pytest.mark.parametrize("length", ["data_length", "payload_length"])
def test_an_event_without_end_is_not_collected(wyoming_server, length):
    _, port = wyoming_server
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(json.dumps({"type": "ping", length: 1 << 40}).encode() + b"\n")
        with contextlib.suppress(ConnectionError):
            assert connection.recv(100) == b"", "it is closed, and nothing more waited for"


def test_a_disconnected_client_frees_its_rows(wyoming_server):
    server, port = wyoming_server
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(json.dumps({"type": "synthesize", "data": {"text": TEXT * 20}}).encode() + b"\n")
        connection.recv(100)
        assert server.model.stats()["calls"]
    assert goes_idle(server.service)


def test_a_client_that_says_nothing_more_is_told_and_waited_for_no_longer(tmp_path):
    port = free_port()
    with running(tmp_path, load_mini, wyoming_port=port, idle_seconds=0.3) as server:
        ready(server)
        received = exchange(port, [SynthesizeStart()], SynthesizeStopped)
        assert "Nothing came for 0.3 s" in Error.from_event(received[-1]).text
        assert server.service.idle()
        received = exchange(port, [Synthesize("Good.")], AudioStop)
        assert sound(received), "others go on"


def test_a_server_that_drains_speaks_what_came_and_ends(tmp_path):
    port = free_port()
    with running(tmp_path, load_mini, wyoming_port=port) as server:
        ready(server)

        async def talk():
            async with AsyncTcpClient("127.0.0.1", port) as client:
                await client.write_event(SynthesizeStart().event())
                await client.write_event(SynthesizeChunk("The kitchen light is on").event())
                while not server.service.busy:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.2)
                server.uvicorn.handle_exit(15, None)
                received = []
                while not (received and SynthesizeStopped.is_type(received[-1].type)):
                    received.append(await asyncio.wait_for(client.read_event(), 60))
                return received

        assert len(sound(asyncio.run(talk()))) > 24_000
        assert goes_idle(server.service)
        assert soon(lambda: server.uvicorn.should_exit)


def test_a_speech_that_is_not_finished_in_time_has_no_end(tmp_path, caplog):
    """Its client sees that something is missing. One that has asked for nothing is disconnected, without a line."""
    port = free_port()
    with running(tmp_path, load_mini, wyoming_port=port, drain_seconds=0.3) as server:
        ready(server)
        with socket.create_connection(("127.0.0.1", port), timeout=60) as silent, \
                socket.create_connection(("127.0.0.1", port), timeout=60) as speaking:
            speaking.sendall(json.dumps({"type": "synthesize", "data": {"text": TEXT * 20}}).encode() + b"\n")
            received = speaking.recv(100)
            server.uvicorn.handle_exit(15, None)
            while data := speaking.recv(1 << 16):
                received += data
            assert silent.recv(1) == b""
        assert b"audio-start" in received
        assert b"audio-stop" not in received
    assert "Exception" not in caplog.text


def test_a_sentence_that_fails_is_told_before_the_text_ends(wyoming_server, monkeypatch):
    server, port = wyoming_server

    def refuse(*_, **__):
        raise ValueError("not this one")

    monkeypatch.setattr(server.model, "submit", refuse)
    received = exchange(port, [SynthesizeStart(), SynthesizeChunk(TEXT + " And then")], Error)
    assert Error.from_event(received[-1]).text == "not this one"
    assert server.service.idle()


def test_whatever_is_written_to_a_client_that_reads_nothing_has_an_end():
    from chatterbox_opt.serve.wyoming_server import Handler

    async def full():
        await asyncio.sleep(60)

    writer = SimpleNamespace(writelines=lambda _: None, write=lambda _: None, drain=full)
    handler = Handler(SimpleNamespace(settings=ServeSettings(stall_seconds=0.01)), None, writer)
    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(handler.write_event(Pong(text="x").event()))


def test_speech_is_as_long_as_the_librarys(wyoming_server):
    """The protocol has no seed, so that greedy sampling is compared."""
    server, port = wyoming_server
    before = server.model.defaults
    try:
        server.model.defaults = type(before)(temperature=0.0)
        received = exchange(port, [Synthesize(TEXT)], AudioStop)
        wanted = b"".join(map(pcm16, server.model.generate_stream(TEXT, seed=1)))
        assert abs(len(sound(received)) - len(wanted)) <= 48_000 * 0.05
    finally:
        server.model.defaults = before


class _Raw:
    """An event of any type."""

    def __init__(self, kind):
        self.kind = kind

    def event(self):
        return Event(type=self.kind)
