"""OpenAI's own client against the server: every format, streams, errors, lists."""

import base64
import io
import json
import logging

import httpx
import openai
import pytest
import soundfile
import torch
from serving import goes_idle, load_mini, ready, running

from chatterbox_opt.audio.io import pcm16
from chatterbox_opt.serve import encoders, service, speech_request
from chatterbox_opt.text.pronounce import Pronunciations

TEXT = "Hello there, how are you today?"


@pytest.fixture(scope="module")
def client(mini):
    return mini.openai()


@pytest.fixture(scope="module")
def library(mini):
    """A model outside of the server."""
    from chatterbox_opt.tts import ChatterboxTTS

    return ChatterboxTTS.from_mini()


def speech(client, **how):
    return client.audio.speech.create(**{"model": "tts-1", "voice": "alloy", "input": TEXT} | how)


@pytest.mark.parametrize("audio_format", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
def test_every_format(client, audio_format):
    if encoders.missing(audio_format):
        pytest.skip(encoders.missing(audio_format))
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="nova", input=TEXT, response_format=audio_format, extra_body={"seed": 1}
    ) as response:
        assert response.headers["content-type"] == encoders.MEDIA[audio_format]
        assert response.headers["x-request-id"].startswith("req_")
        data = b"".join(response.iter_bytes())
    if audio_format in ("pcm", "wav"):
        return
    av = pytest.importorskip("av")
    with av.open(io.BytesIO(data)) as file:
        samples = sum(frame.samples / frame.sample_rate for frame in file.decode(audio=0))
    assert 0.5 < samples < 6


def test_the_sound_equals_the_library_byte_for_byte(client, library):
    stream = b"".join(pcm16(chunk) for chunk in library.generate_stream(TEXT, seed=7))
    assert speech(client, response_format="pcm", extra_body={"seed": 7}).content == stream
    whole = pcm16(library.generate(TEXT, seed=7))
    assert speech(client, response_format="pcm", extra_body={"seed": 7, "stream": False}).content == whole


def test_options_reach_the_engine(client, library):
    how = {"seed": 3, "temperature": 0.4, "cfg_weight": 0.2, "exaggeration": 0.9, "top_p": 0.9, "min_p": 0.1,
           "repetition_penalty": 1.4}
    expected = b"".join(pcm16(chunk) for chunk in library.generate_stream(TEXT, first_chunk=0.5, **how))
    assert speech(client, response_format="pcm", extra_body={**how, "first_chunk": 0.5}).content == expected


def test_markup(client, library):
    how = {"seed": 7, "stream": False, "markup": True}
    expected = pcm16(library.generate("Hello. [pause 1s] Hello.", seed=7, markup=True))
    assert speech(client, input="Hello. [pause 1s] Hello.", response_format="pcm", extra_body=how).content == expected
    with pytest.raises(openai.BadRequestError, match="line 1, column 8"):
        speech(client, input="Hello. [shout]", extra_body=how)


def test_numbers_in_words_and_respellings(client, library, tmp_path):
    pytest.importorskip("wetext", reason="pip install 'chatterbox-opt[text]'")
    how = {"seed": 7, "stream": False}
    expected = pcm16(library.generate("My dogs left in nineteen eighty four.", seed=7))
    asked = dict(input="My dogs left in 1984.", response_format="pcm")
    assert speech(client, extra_body={**how, "spoken": True}, **asked).content == expected
    assert speech(client, extra_body=how, **asked).content != expected
    respelt = Pronunciations({"cats": "dogs"}, voices={"alloy": Pronunciations({"1984": "nineteen eighty four"})})
    with running(tmp_path, load_mini, pronounce=respelt) as server:
        answer = speech(ready(server).openai(), extra_body=how, input="My cats left in 1984.", response_format="pcm")
    assert answer.content == expected


@pytest.mark.parametrize(
    ("text", "how"), [(f"{TEXT} " * 4, {"max_chars": 35}), ("Hello. [pause 11s] Hello.", {"markup": True})]
)
def test_a_long_text_is_not_put_together_at_once(client, library, monkeypatch, mini, text, how):
    """It is watermarked and encoded piece by piece, as a stream is."""
    monkeypatch.setattr(service, "WHOLE", 100)
    monkeypatch.setattr(service, "WHOLE_PAUSES", 10.0)
    marked, apply = [], mini.model.watermarker.apply

    def seen(wavs, rate=24_000):
        marked.extend(map(len, wavs))
        return apply(wavs, rate)

    monkeypatch.setattr(mini.model.watermarker, "apply", seen)
    expected = b"".join(pcm16(chunk) for chunk in library.generate_stream(text, first_chunk=60, seed=7, **how))
    how = {"seed": 7, "stream": False, **how}
    assert speech(client, input=text, response_format="pcm", extra_body=how).content == expected
    assert max(marked) < len(expected) / 2 / 2


def test_pauses_have_a_limit(mini):
    def ask(text, **how):
        body = {"input": text, "response_format": "pcm", "markup": True, "seed": 1}
        return httpx.post(f"{mini.url}/v1/audio/speech", json=body | how, timeout=60)

    answer = ask("Hello there. " + "[pause 60s]" * 2 + "Good bye.")
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("line 1, column 25: the pauses add up to 120 s")
    answer = ask("Hello. [pause 60s] " * 17)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "pauses_too_long"
    assert ask("Hello. [pause 60s] " * 17, markup=False, max_new_tokens=10).status_code == 200


def test_an_unstreamed_wav_has_its_length(mini):
    body = {"input": TEXT, "response_format": "wav", "stream": False, "seed": 1}
    answer = httpx.post(f"{mini.url}/v1/audio/speech", json=body, timeout=60)
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert answer.content[40:44] == (len(answer.content) - 44).to_bytes(4, "little")


def test_chunks_come_before_the_end(mini):
    body = {"input": "This is a rather long text, to be heard in parts. " * 12, "response_format": "pcm", "seed": 1}
    body["n_cfm_timesteps"] = 1  # soon made
    with httpx.stream("POST", f"{mini.url}/v1/audio/speech", json=body, timeout=60) as answer:
        parts = answer.iter_raw()
        assert next(parts)
        assert mini.model.stats()["calls"] == 1  # still being made
        assert len(b"".join(parts)) > 5 * 48_000


class FailsInTheMiddle:
    """A speech of the model's whose second chunk is an error."""

    def __init__(self, speech):
        self.speech, self.chunks = speech, 0

    def __getattr__(self, name):
        return getattr(self.speech, name)

    def take(self):
        chunk = self.speech.take()
        self.chunks += chunk is not None
        if self.chunks == 2:
            raise RuntimeError("out of memory")
        return chunk


def test_a_speech_that_fails_in_mid_stream_does_not_look_complete(mini, monkeypatch):
    submit = mini.model.submit
    monkeypatch.setattr(mini.model, "submit", lambda text, **how: FailsInTheMiddle(submit(text, **how)))
    body = {"input": "This is a rather long text, to be heard in parts. " * 3, "response_format": "pcm", "seed": 1}
    with httpx.stream("POST", f"{mini.url}/v1/audio/speech", json=body, timeout=60) as answer:
        parts = answer.iter_raw()
        assert answer.status_code == 200
        assert next(parts)
        with pytest.raises(httpx.RemoteProtocolError):
            b"".join(parts)
    answer = httpx.post(f"{mini.url}/v1/audio/speech", json=body | {"stream_format": "sse"}, timeout=60)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line]
    *sounds, last = [event["type"] for event in events]
    assert set(sounds) == {"speech.audio.delta"}
    assert last == "error"
    assert events[-1]["error"]["message"]
    assert goes_idle(mini.service)


def test_events(client, mini, library):
    body = {"input": TEXT, "stream_format": "sse", "response_format": "pcm", "seed": 7}
    answer = httpx.post(f"{mini.url}/v1/audio/speech", json=body, timeout=60)
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    events = [json.loads(line[6:]) for line in lines]
    assert {e["type"] for e in events[:-1]} == {"speech.audio.delta"}
    assert max(map(len, lines)) < 64 * 1024  # what line readers take
    sound = b"".join(base64.b64decode(e["audio"]) for e in events[:-1])
    stream = torch.cat(list(library.generate_stream(TEXT, seed=7)), 1)
    assert sound == pcm16(stream)
    usage = events[-1]["usage"]
    assert events[-1]["type"] == "speech.audio.done"
    assert usage["input_tokens"] == len(library.tokenizer.encode(TEXT))
    assert usage["output_tokens"] * 960 >= stream.shape[1] - 2400
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_speed(client):
    def seconds(speed):
        data = speech(client, response_format="wav", speed=speed, extra_body={"seed": 1}).content
        return len(soundfile.read(io.BytesIO(data))[0]) / 24_000

    usual = seconds(1.0)
    assert seconds(2.0) == pytest.approx(usual / 2, abs=0.001)
    assert seconds(0.5) == pytest.approx(usual * 2, abs=0.001)


def test_instructions_are_ignored_and_the_log_says_so_once(client, caplog):
    """Clients of gpt-4o-mini-tts send them from a field of their settings, which is no reason to refuse their text."""
    how = {"model": "gpt-4o-mini-tts", "response_format": "pcm", "extra_body": {"seed": 1}}
    speech_request.warn_of_instructions.cache_clear()
    with caplog.at_level(logging.WARNING, "chatterbox_opt"):
        usual = speech(client, instructions=" ", **how).content
        assert not caplog.records
        assert [speech(client, instructions="Whisper.", **how).content for _ in range(2)] == [usual] * 2
    (line,) = caplog.messages
    assert all(word in line for word in ("instructions", "ignored", "exaggeration", "cfg_weight", "temperature"))


@pytest.mark.parametrize(
    ("how", "status", "param"),
    [
        ({"input": ""}, 400, "input"),
        ({"input": "  \n"}, 400, "input"),
        ({"input": "x" * 100_001}, 400, "input"),
        ({"voice": "nobody"}, 400, "voice"),
        ({"voice": "../../etc/passwd"}, 400, "voice"),
        ({"model": "gpt-9"}, 404, "model"),
        ({"response_format": "au"}, 400, "response_format"),
        ({"speed": 5}, 400, "speed"),
        ({"instructions": "x" * 4097}, 400, "instructions"),  # OpenAI's limit
        ({"extra_body": {"volume": 2}}, 400, "volume"),
        ({"extra_body": {"temperature": -1}}, 400, "temperature"),
        ({"extra_body": {"temperature": "hot"}}, 400, "temperature"),
        ({"extra_body": {"top_p": 2}}, 400, "top_p"),
        ({"extra_body": {"exaggeration": 11}}, 400, "exaggeration"),
        ({"extra_body": {"max_new_tokens": 0}}, 400, "max_new_tokens"),
        ({"extra_body": {"n_cfm_timesteps": 1000}}, 400, "n_cfm_timesteps"),
        ({"extra_body": {"max_chars": 3}}, 400, "max_chars"),
        ({"extra_body": {"first_chunk": 0}}, 400, "first_chunk"),
        ({"extra_body": {"language": "fr"}}, 400, "language"),
        ({"extra_body": {"seed": "one"}}, 400, "seed"),
    ],
)
def test_invalid_fields_are_named(client, how, status, param):
    with pytest.raises(openai.APIStatusError) as caught:
        speech(client, **how)
    assert caught.value.status_code == status
    error = caught.value.body
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert caught.value.request_id.startswith("req_")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"input": NaN}', b'{"input": "a", "speed": NaN}',
                                  b"\xff\xfe", b'{"input": "\\ud800", "voice": "\\ud800"}', b"[" * 100_000])
def test_malformed_bodies(mini, body):
    answer = httpx.post(f"{mini.url}/v1/audio/speech", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_a_body_that_is_no_json_object_is_told_what_it_must_be(mini):
    def fault(body, kind="application/json"):
        answer = httpx.post(f"{mini.url}/v1/audio/speech", content=body, headers={"content-type": kind})
        return answer.json()["error"]

    assert fault(b'{"input": ')["param"] is None
    assert "no JSON" in fault(b'{"input": ')["message"]
    form = fault(b'{"input": "Hi."}', "application/x-www-form-urlencoded")  # as curl sends it unasked
    assert "content-type: application/json" in form["message"]


def test_half_a_surrogate_pair_is_no_server_error(mini):
    answer = httpx.post(
        f"{mini.url}/v1/audio/speech", content=b'{"input": "Hello \\ud800 there.", "response_format": "pcm"}',
        headers={"content-type": "application/json"}, timeout=60,
    )
    assert answer.status_code in (200, 400)


def test_unknown_routes(mini):
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/audio/speech", 405)):
        answer = httpx.request(method, mini.url + path)
        assert answer.status_code == status
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_models(client, mini):
    names = [model.id for model in client.models.list()]
    assert names[0] == "mini"
    assert {"tts-1", "tts-1-hd", "gpt-4o-mini-tts"} <= set(names)
    assert client.models.retrieve("tts-1").id == "tts-1"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")
    listed = httpx.get(f"{mini.url}/v1/audio/models").json()
    assert [m["id"] for m in listed["models"]] == names
    assert set(listed["data"][0]["parameters"]) >= {"temperature", "exaggeration", "cfg_weight"}


