"""Text sent while it is written, by a real WebSocket client."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from serving import goes_idle
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from chatterbox_opt.audio.io import pcm16
from chatterbox_opt.serve import incoming_text
from chatterbox_opt.serve.incoming_text import IncomingText
from chatterbox_opt.serve.speech_request import Manner
from chatterbox_opt.text.markup import parse
from chatterbox_opt.text.split import finished_length

WORDS = "Here comes the first sentence of the answer. And this is the second one, a little later."
FIRST, SECOND = "Here comes the first sentence of the answer.", "And this is the second one, a little later."


def exchange(server, messages, **how):
    with connect(f"ws://127.0.0.1:{server.port}/v1/audio/speech/stream", max_size=None, **how) as socket:
        for message in messages:
            socket.send(message if isinstance(message, (str, bytes)) else json.dumps(message))
        received = []
        try:
            while True:
                data = socket.recv(60)
                received.append(data if isinstance(data, bytes) else json.loads(data))
        except ConnectionClosed as closed:
            return received, closed.rcvd.code if closed.rcvd else None


def config(**how):
    return {"type": "session.config", "seed": 4} | how


def text_message(text):
    return {"type": "input.text", "text": text}


DONE = {"type": "input.done"}


def sounds(received):
    out, current = [], b""
    for item in received:
        if isinstance(item, bytes):
            current += item
        elif item["type"] == "audio.done":
            out.append(current)
            current = b""
    return out


def test_word_by_word(mini):
    words = [text_message(word + " ") for word in WORDS.split(" ")]
    received, code = exchange(mini, [config(), *words, DONE])
    assert code == 1000
    events = [item for item in received if isinstance(item, dict)]
    assert [e["type"] for e in events] == ["audio.start", "audio.done"] * 2 + ["session.done"]
    assert [e["sentence_text"] for e in events if e["type"] == "audio.start"] == [FIRST, SECOND]
    assert [e["sentence_index"] for e in events[:-1]] == [0, 0, 1, 1]
    assert events[0]["sample_rate"] == 24_000
    assert events[-1]["total_sentences"] == 2
    wanted = [b"".join(map(pcm16, mini.model.generate_stream(text, seed=4))) for text in (FIRST, SECOND)]
    assert sounds(received) == wanted
    assert [e["total_bytes"] for e in events if e["type"] == "audio.done"] == list(map(len, wanted))


def test_the_first_sentence_is_spoken_before_the_second_is_sent(mini):
    with connect(f"ws://127.0.0.1:{mini.port}/v1/audio/speech/stream") as socket:
        socket.send(json.dumps(config()))
        socket.send(json.dumps(text_message(FIRST + " And")))
        assert json.loads(socket.recv(60))["type"] == "audio.start"
        while isinstance(socket.recv(60), bytes):
            pass
        socket.send(json.dumps(text_message(" so on.")))
        socket.send(json.dumps(DONE))
        assert json.loads(socket.recv(60))["sentence_text"] == "And so on."


@pytest.mark.parametrize("kind", ["wav", "mp3", "flac"])
def test_other_formats_in_one_frame_per_sentence(mini, kind):
    received, _ = exchange(mini, [config(response_format=kind, stream_audio=False), text_message(WORDS), DONE])
    frames = [item for item in received if isinstance(item, bytes)]
    assert sounds(received) == frames  # one a sentence
    assert len(frames) == 2
    if kind == "wav":
        assert frames[0][40:44] == (len(frames[0]) - 44).to_bytes(4, "little")


@pytest.mark.parametrize(
    "first", [text_message("Hello"), config(voice="nobody"), config(colour="red"), config(speed=9),
              config(model="gpt-9"), config(response_format="au"), config(temperature="hot"),
              config(instructions="x" * 4097), "nonsense", "[]", b"\x00\x01", "[" * 10_000,
              '{"type": "session.config", "voice": "\\ud800"}'],
)
def test_invalid_configurations_close_the_session(mini, first):
    received, code = exchange(mini, [first])
    assert code == 1008
    assert received[-1]["type"] == "error"
    assert received[-1]["message"]
    assert received[-1]["error"]["type"] == "invalid_request_error"


def test_unknown_messages_are_reported_and_skipped(mini):
    received, code = exchange(mini, [config(), {"type": "input.song"}, text_message(FIRST), DONE])
    assert received[0]["type"] == "error"
    assert code == 1000
    assert len(sounds(received)) == 1


def test_a_binary_frame_after_the_text_does_not_end_the_session(mini):
    received, code = exchange(mini, [config(), text_message(FIRST), DONE, b"x", {"type": "more"}])
    assert code == 1000
    assert received[-1] == {"type": "session.done", "total_sentences": 1}


def test_instructions_are_ignored(mini):
    usual, instructed = (exchange(mini, [how, text_message(FIRST), DONE]) for how in (
        config(), config(instructions="Whisper.")
    ))
    assert instructed == usual


def test_a_refused_sentence_does_not_end_the_session(mini):
    received, code = exchange(mini, [config(top_p=7), text_message(FIRST), DONE])
    assert code == 1000
    assert received[0]["error"]["param"] == "top_p"
    assert received[-1] == {"type": "session.done", "total_sentences": 1}


def test_an_empty_text(mini):
    received, code = exchange(mini, [config(), text_message("  "), DONE])
    assert (received, code) == ([{"type": "session.done", "total_sentences": 0}], 1000)


def test_a_text_that_is_too_long(mini):
    received, code = exchange(mini, [config(), *[text_message("word " * 5000)] * 6, DONE])
    assert code == 1008
    assert received[-1]["error"]["code"] == "text_too_long"


def test_a_disconnected_client_frees_its_rows(mini):
    with connect(f"ws://127.0.0.1:{mini.port}/v1/audio/speech/stream") as socket:
        socket.send(json.dumps(config()))
        socket.send(json.dumps(text_message(WORDS * 20)))
        socket.send(json.dumps(DONE))
        socket.recv(60)
        assert mini.service.busy == 1
    spoken = mini.model.stats()["tokens"]
    assert goes_idle(mini.service)
    assert mini.model.stats()["tokens"] - spoken < 300  # of some 2500


def test_pages_of_other_sites_are_refused(mini):
    from websockets.exceptions import InvalidStatus

    with pytest.raises(InvalidStatus):
        exchange(mini, [config()], origin="http://evil.example")


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        ("Hello the", ""), ("Hello.", ""), ("Hello. ", ""), ("Hello. T", "Hello. "), ("I met Mr. S", ""),
        ("It is 3.", ""), ("It is 3.5 now. A", "It is 3.5 now. "), ("What? No! Y", "What? No! "),
        ("One. Two. Thr", "One. Two. "), ("A heading\n\n", "A heading\n\n"), ("e.g. this", ""), ("你好。我", "你好。"),
        ("你好。", ""), ("“Go!” he", ""), ("“Go.” He", "“Go.” "), ("", ""),
    ],
)
def test_where_the_last_complete_sentence_ends(text, finished):
    assert text[: finished_length(text)] == finished


def sentences_of(messages: list[str], **how) -> list[tuple[str, str]]:
    """Returns what is spoken as one, as the client is told it and as the engine gets it."""
    given = []

    async def speak(text, *_, **__):
        given.append(text)

    async def run():
        service = SimpleNamespace(settings=SimpleNamespace(max_text=100_000), speak=speak)
        text = IncomingText(service, Manner(**how))
        for message in messages:
            text.feed(message)
        text.finish()
        told = [sentence async for sentence, _ in text]
        return list(zip(told, given, strict=True))

    return asyncio.run(run())


def test_the_language_of_a_mark_holds_until_the_next():
    text = (
        "Here is English. [lang fr] Une phrase assez longue.\n\nEt une autre phrase, assez longue.\n\n"
        "# Un titre assez long ici\n\nFin de cela. [lang] Here it ends.\n\nAnd this is English again."
    )
    spoken = sentences_of(list(text), markup=True)
    assert "\n\n".join(told for told, _ in spoken) == text
    parts = [(given, part) for _, given in spoken for part in parse(given, languages=["fr"])]
    said = [(given[slice(*part.body)].split(".")[0], part.language) for given, part in parts]
    assert said == [
        ("Here is English", None), ("Une phrase assez longue", "fr"), ("Et une autre phrase, assez longue", "fr"),
        ("Un titre assez long ici", "fr"), ("Fin de cela", "fr"), ("Here it ends", None),
        ("And this is English again", None),
    ]
    assert all(told == given for told, given in sentences_of(list(text))), "without markup they are text"


@pytest.mark.parametrize(
    ("text", "how", "told"),
    [
        (f"{FIRST}\n\n[pause 2s]", dict(markup=True), [FIRST]),
        (f"{FIRST}\n\n[pause 2s]\n\n[pause 250ms] [lang]\n\n{SECOND}", dict(markup=True),
         [FIRST, f"[pause 2s]\n\n[pause 250ms] [lang]\n\n{SECOND}"]),
        (f"{FIRST}\n\n[pause 2s]", {}, [FIRST, "[pause 2s]"]),
        (f"{FIRST} 😀", {}, [FIRST]),
        (f"{FIRST}\n\n{'-' * 40}\n\n{SECOND} \"", {}, [FIRST, f"{'-' * 40}\n\n{SECOND}"]),
        ("---\n\n😀", {}, []),
        ("今天天气很好，我们去公园散步吧。你好。", {}, ["今天天气很好，我们去公园散步吧。", "你好。"]),
    ],
)
def test_what_has_no_letter_is_no_sentence_of_its_own(text, how, told):
    assert [sentence for sentence, _ in sentences_of(list(text), **how)] == told


@pytest.mark.parametrize(("letters", "told"), [(23, 1), (24, 2)])
def test_a_sentence_under_25_letters_waits_for_the_next(letters, told):
    assert len(sentences_of([f"{'a' * letters}. ", "And here the text goes on."])) == told


def test_a_pause_at_the_very_end_is_no_error(mini):
    received, code = exchange(mini, [config(markup=True), text_message(f"{FIRST}\n\n[pause 2s]"), DONE])
    assert [e["type"] for e in received if isinstance(e, dict)] == ["audio.start", "audio.done", "session.done"]
    assert code == 1000


def test_a_long_text_without_an_end_is_not_searched_at_every_word(monkeypatch):
    """Which would hold up the event loop, and with it every other client, for minutes."""
    searched, sentences = [], []

    def counted(text):
        searched.append(len(text))
        return finished_length(text)

    async def speak(text, *_, **__):
        sentences.append(text)

    async def run():
        service = SimpleNamespace(settings=SimpleNamespace(max_text=100_000), speak=speak)
        text = IncomingText(service, Manner())
        for _ in range(10_000):
            text.feed("word ")
        text.feed("end. ")
        for _ in range(2000):  # an end is found late, but found
            text.feed("More ")
        text.finish()
        assert [spoken async for spoken, _ in text] == sentences

    monkeypatch.setattr(incoming_text, "finished_length", counted)
    asyncio.run(run())
    assert sum(searched) < 50 * 60_000
    assert [sentence.split()[-1] for sentence in sentences] == ["end.", "More"]
