"""Text that comes while it is written, by a real WebSocket client."""

import json

import pytest
from serving import quiet_within
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from chatterbox_opt.audio.io import pcm16
from chatterbox_opt.text.split import finished_length

WORDS = "Here comes the first sentence of the answer. And this is the second one, a little later."
FIRST, SECOND = "Here comes the first sentence of the answer.", "And this is the second one, a little later."


def talk(one, messages, **how):
    with connect(f"ws://127.0.0.1:{one.port}/v1/audio/speech/stream", max_size=None, **how) as socket:
        for message in messages:
            socket.send(message if isinstance(message, (str, bytes)) else json.dumps(message))
        got = []
        try:
            while True:
                data = socket.recv(60)
                got.append(data if isinstance(data, bytes) else json.loads(data))
        except ConnectionClosed as closed:
            return got, closed.rcvd.code if closed.rcvd else None


def config(**how):
    return {"type": "session.config", "seed": 4} | how


def said(text):
    return {"type": "input.text", "text": text}


DONE = {"type": "input.done"}


def sounds(got):
    out, current = [], b""
    for item in got:
        if isinstance(item, bytes):
            current += item
        elif item["type"] == "audio.done":
            out.append(current)
            current = b""
    return out


def test_word_by_word(mini):
    words = [said(word + " ") for word in WORDS.split(" ")]
    got, code = talk(mini, [config(), *words, DONE])
    assert code == 1000
    events = [item for item in got if isinstance(item, dict)]
    assert [e["type"] for e in events] == ["audio.start", "audio.done"] * 2 + ["session.done"]
    assert [e["sentence_text"] for e in events if e["type"] == "audio.start"] == [FIRST, SECOND]
    assert [e["sentence_index"] for e in events[:-1]] == [0, 0, 1, 1]
    assert events[0]["sample_rate"] == 24_000
    assert events[-1]["total_sentences"] == 2
    wanted = [b"".join(map(pcm16, mini.model.generate_stream(text, seed=4))) for text in (FIRST, SECOND)]
    assert sounds(got) == wanted
    assert [e["total_bytes"] for e in events if e["type"] == "audio.done"] == list(map(len, wanted))


def test_the_first_sentence_is_heard_before_the_second_is_written(mini):
    with connect(f"ws://127.0.0.1:{mini.port}/v1/audio/speech/stream") as socket:
        socket.send(json.dumps(config()))
        socket.send(json.dumps(said(FIRST + " And")))
        assert json.loads(socket.recv(60))["type"] == "audio.start"
        while isinstance(socket.recv(60), bytes):
            pass
        socket.send(json.dumps(said(" so on.")))
        socket.send(json.dumps(DONE))
        assert json.loads(socket.recv(60))["sentence_text"] == "And so on."


@pytest.mark.parametrize("kind", ["wav", "mp3", "flac"])
def test_other_formats_and_whole_frames(mini, kind):
    got, _ = talk(mini, [config(response_format=kind, stream_audio=False), said(WORDS), DONE])
    frames = [item for item in got if isinstance(item, bytes)]
    assert sounds(got) == frames  # one a sentence
    assert len(frames) == 2
    if kind == "wav":
        assert frames[0][40:44] == (len(frames[0]) - 44).to_bytes(4, "little")


@pytest.mark.parametrize(
    "first", [said("Hello"), config(voice="nobody"), config(colour="red"), config(speed=9), config(model="gpt-9"),
              config(response_format="au"), config(temperature="hot"), "nonsense", "[]", b"\x00\x01",
              "[" * 10_000, '{"type": "session.config", "voice": "\\ud800"}'],
)
def test_a_session_that_cannot_be(mini, first):
    got, code = talk(mini, [first])
    assert code == 1008
    assert got[-1]["type"] == "error"
    assert got[-1]["message"]
    assert got[-1]["error"]["type"] == "invalid_request_error"


def test_what_is_no_message_is_told_and_passed_over(mini):
    got, code = talk(mini, [config(), {"type": "input.song"}, said(FIRST), DONE])
    assert got[0]["type"] == "error"
    assert code == 1000
    assert len(sounds(got)) == 1


def test_engine_refuses_and_the_session_goes_on(mini):
    got, code = talk(mini, [config(top_p=7), said(FIRST), DONE])
    assert code == 1000
    assert got[0]["error"]["param"] == "top_p"
    assert got[-1] == {"type": "session.done", "total_sentences": 1}


def test_nothing_to_say(mini):
    got, code = talk(mini, [config(), said("  "), DONE])
    assert (got, code) == ([{"type": "session.done", "total_sentences": 0}], 1000)


def test_a_text_that_never_ends(mini):
    got, code = talk(mini, [config(), *[said("word " * 5000)] * 6, DONE])
    assert code == 1008
    assert got[-1]["error"]["code"] == "text_too_long"


def test_a_client_that_leaves_frees_its_rows(mini):
    with connect(f"ws://127.0.0.1:{mini.port}/v1/audio/speech/stream") as socket:
        socket.send(json.dumps(config()))
        socket.send(json.dumps(said(WORDS * 20)))
        socket.send(json.dumps(DONE))
        socket.recv(60)
        assert mini.service.busy == 1
    spoken = mini.model.stats()["tokens"]
    assert quiet_within(mini.service)
    assert mini.model.stats()["tokens"] - spoken < 300  # of some 2500


def test_pages_of_other_sites_may_not(mini):
    from websockets.exceptions import InvalidStatus

    with pytest.raises(InvalidStatus):
        talk(mini, [config()], origin="http://evil.example")


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        ("Hello the", ""), ("Hello.", ""), ("Hello. ", ""), ("Hello. T", "Hello. "), ("I met Mr. S", ""),
        ("It is 3.", ""), ("It is 3.5 now. A", "It is 3.5 now. "), ("What? No! Y", "What? No! "),
        ("One. Two. Thr", "One. Two. "), ("A heading\n\n", "A heading\n\n"), ("e.g. this", ""), ("你好。我", "你好。"),
        ("你好。", ""), ("“Go!” he", ""), ("“Go.” He", "“Go.” "), ("", ""),
    ],
)
def test_where_a_sentence_has_certainly_ended(text, finished):
    assert text[: finished_length(text)] == finished
