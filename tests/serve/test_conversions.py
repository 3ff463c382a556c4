"""A recording spoken again in another voice."""

import contextlib
import io
import threading

import httpx
import pytest
import soundfile
from serving import recording, sent
from threads import soon


def convert(server, sound, timeout=60, **form):
    files = {"file": ("in.wav", sound)}
    return httpx.post(f"{server.url}/v1/audio/conversions", data=form, files=files, timeout=timeout)


@pytest.fixture(scope="module")
def anna(tiny):
    files = {"audio_sample": ("anna.wav", recording(seed=3))}
    httpx.post(f"{tiny.url}/v1/audio/voices", data={"name": "anna"}, files=files, timeout=60).raise_for_status()
    return "anna"


def test_it_equals_the_library(tiny, anna):
    from chatterbox_opt.audio.io import pcm16
    from chatterbox_opt.vc import ChatterboxVC

    answer = convert(tiny, recording(2.0), voice=anna, seed=5, response_format="pcm")
    model = tiny.model
    vc = ChatterboxVC(model.s3gen, model.device, config=model.config, enable_watermark=False, engine=model.options)
    expected = vc.generate(io.BytesIO(recording(2.0)), tiny.service.voices.get(anna), seed=5)
    assert answer.content == pcm16(expected)


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3"])
def test_formats(tiny, anna, kind):
    answer = convert(tiny, recording(2.0), voice=anna, response_format=kind)
    assert answer.status_code == 200
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert soundfile.info(io.BytesIO(answer.content)).duration == pytest.approx(2.0, abs=0.15)


def test_invalid_requests_are_refused(tiny, mini, anna):
    for how, param in (
        ({"voice": "nobody"}, "voice"), ({"response_format": "au"}, "response_format"), ({"seed": "x"}, "seed"),
        ({"colour": "red"}, "colour"),
    ):
        answer = convert(tiny, recording(1.0), **how)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param
    for sound in (b"", b"RIFF", b"x" * 1000, recording(0.005)):
        answer = convert(tiny, sound, voice=anna)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", "file")
    assert "cannot convert" in convert(mini, recording(1.0)).json()["error"]["message"]


def begun(server, voice):
    """A conversion whose client does not wait for its end."""
    return sent(server, "/v1/audio/conversions", data={"voice": voice}, files={"file": ("in.wav", recording(1.0))})


def test_a_fifth_conversion_at_once_is_refused(tiny, anna, monkeypatch):
    cancelled = lambda recording, voice, seed, cancel: cancel.wait(20)  # noqa: E731
    monkeypatch.setattr(tiny.service.converter, "convert", cancelled)
    with contextlib.ExitStack() as clients:
        for number in range(4):
            clients.enter_context(begun(tiny, anna))
            assert soon(lambda: tiny.service.converter.waiting == number + 1)  # noqa: B023
        answer = convert(tiny, recording(1.0), voice=anna)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
    assert soon(lambda: not tiny.service.busy)


def test_a_disconnected_client_cancels_its_conversion(tiny, anna, monkeypatch):
    seen = threading.Event()
    ended = threading.Event()

    def slow(recording, voice, seed, cancel):
        seen.set()
        cancel.wait(20)
        if cancel.is_set():
            ended.set()
        raise ValueError("cancelled")

    monkeypatch.setattr(tiny.service.converter, "convert", slow)
    with begun(tiny, anna):
        assert seen.wait(20)
        assert not ended.is_set()
    assert ended.wait(20)
    assert soon(lambda: not tiny.service.busy)
