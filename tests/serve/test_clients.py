"""Requests as these clients were seen to send them, and what each needs of the answer."""

import io

import httpx
import pytest
import soundfile
from serving import load_tiny, ready, recording, running

from chatterbox_opt.serve import encoders

SILLYTAVERN = {  # its chatterbox provider sends all of this, always
    "text": "Hello there.", "voice_mode": "predefined", "temperature": 0.8, "exaggeration": 0.5, "cfg_weight": 0.5,
    "seed": 12, "speed_factor": 1.0, "language": "en", "split_text": True, "chunk_size": 120, "output_format": "wav",
    "predefined_voice_id": "default",
}


def post(server, path, **body):
    return httpx.post(server.url + path, json=body, timeout=60)


def upload(server):
    """Adds a voice called "me"."""
    files = {"audio_sample": ("me.wav", recording())}
    return httpx.post(f"{server.url}/v1/audio/voices", data={"name": "me"}, files=files, timeout=60)


def test_open_webui(mini):
    """It lists voices and models, then sends three fields, and relies on the content type."""
    voices = httpx.get(f"{mini.url}/v1/audio/voices").json()["voices"]
    models = httpx.get(f"{mini.url}/v1/audio/models").json()["models"]
    assert all({"id", "name"} <= set(voice) for voice in voices)
    answer = post(mini, "/v1/audio/speech", model=models[0]["id"], input="Hello there.", voice=voices[0]["id"])
    assert answer.headers["content-type"] == "audio/mpeg"
    assert soundfile.info(io.BytesIO(answer.content)).duration > 0.3


def test_sillytavern_as_openai(mini):
    answer = post(
        mini, "/v1/audio/speech", input="Hello there.", response_format="mp3", voice="alloy", speed=1, model="tts-1"
    )
    assert soundfile.info(io.BytesIO(answer.content)).samplerate == 24_000


def test_sillytavern_as_chatterbox(mini):
    assert httpx.get(mini.url).status_code == 200
    assert httpx.get(f"{mini.url}/api/ui/initial-data").json()["predefined_voices"][0]["display_name"] == "default"
    voices = httpx.get(f"{mini.url}/get_predefined_voices").json()
    assert all({"display_name", "filename"} <= set(voice) for voice in voices)
    assert httpx.get(f"{mini.url}/get_reference_files").json() == []
    answer = post(mini, "/tts", **SILLYTAVERN)
    assert answer.headers["content-type"] == "audio/wav"
    assert "x-ignored-parameters" not in answer.headers
    assert soundfile.info(io.BytesIO(answer.content)).duration > 0.3
    stream = httpx.get(f"{mini.url}/tts-stream", params={**SILLYTAVERN, "seed": -1}, timeout=60)
    assert stream.headers["content-type"] == "audio/wav"


@pytest.mark.parametrize(
    ("change", "param"),
    [({"voice_mode": "clone"}, "reference_audio_filename"), ({"predefined_voice_id": "S1"}, "voice"),
     ({"chunk_size": "many"}, "chunk_size"), ({"language": "fr"}, "language"), ({"pitch": 2}, "pitch")],
)
def test_sillytavern_errors_name_the_field(mini, change, param):
    answer = post(mini, "/tts", **(SILLYTAVERN | change))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_turbo_ignores_what_sillytavern_always_sends_and_refuses_it_from_others(tmp_path):
    with running(tmp_path, lambda: load_tiny("turbo"), model_id="turbo") as server:
        ready(server)
        assert upload(server).status_code == 200
        assert httpx.get(f"{server.url}/get_reference_files").json() == ["me"]
        clone = {**SILLYTAVERN, "voice_mode": "clone", "reference_audio_filename": "me"}
        clone.pop("predefined_voice_id")
        answer = post(server, "/tts", **clone)
        assert answer.status_code == 200
        assert answer.headers["x-ignored-parameters"] == "exaggeration, cfg_weight"
        refused = post(server, "/v1/audio/speech", input="Hello.", voice="me", exaggeration=0.7)
        assert refused.json()["error"]["param"] == "exaggeration"
        assert "exaggeration" not in httpx.get(f"{server.url}/v1/models").json()["data"][0]["parameters"]


def test_languages(tmp_path):
    with running(tmp_path, lambda: load_tiny("mtl"), model_id="multilingual") as server:
        ready(server)
        upload(server)
        for language in ("fr", "de-AT", "pt_BR", "nb-NO", "zh-TW", None):
            answer = post(server, "/v1/audio/speech", input="Bonjour.", voice="me", language=language)
            assert answer.status_code == 200, answer.text
        answer = post(server, "/v1/audio/speech", input="Bonjour.", voice="me", language="tlh")
        assert answer.json()["error"]["param"] == "language"
        assert "fr" in httpx.get(f"{server.url}/v1/models").json()["data"][0]["languages"]


def test_home_assistant_openai_tts(mini):
    """It joins answers of one format byte by byte, so that an mp3 must have no header of its length."""
    bodies = [{"model": "tts-1", "input": text, "voice": "shimmer", "response_format": "mp3", "speed": 1.0}
              for text in ("Good morning.", "It is eight.")]
    both = b"".join(post(mini, "/v1/audio/speech", **body).content for body in bodies)
    assert soundfile.info(io.BytesIO(both)).duration > 0.8
    assert b"Xing" not in both


def test_livekit(mini):
    body = {"input": "Hello there.", "model": "gpt-4o-mini-tts", "voice": "ash", "response_format": "mp3", "speed": 1.0,
            "stream_format": "sse"}
    answer = post(mini, "/v1/audio/speech", **body)
    assert answer.status_code == 200
    assert "speech.audio.done" in answer.text


@pytest.mark.parametrize("voice", ["alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova",
                                   "onyx", "sage", "shimmer", "verse"])
def test_pipecat(mini, voice):
    """One of OpenAI's 13 names, 24 kHz pcm."""
    body = {"input": "Hi.", "model": "gpt-4o-mini-tts", "voice": voice, "response_format": "pcm", "max_new_tokens": 10}
    answer = post(mini, "/v1/audio/speech", **body)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == encoders.MEDIA["pcm"]
    assert answer.headers["x-sample-rate"] == "24000"
