"""Load and misuse: full queues, disconnected clients, shutdown."""

import asyncio
import json
import logging
import socket
import threading
from types import SimpleNamespace

import httpx
import openai
import pytest
import uvicorn
from serving import goes_idle, load_mini, load_tiny, ready, running, sent
from threads import in_threads, soon

from chatterbox_opt.serve.errors import ApiError
from chatterbox_opt.serve.responses import SpeechResponse
from chatterbox_opt.serve.sending import in_time
from chatterbox_opt.serve.service import Service
from chatterbox_opt.serve.settings import ServeSettings

LONG = "This goes on for quite a while, and nobody may have the patience to hear all of it. " * 12


def body(text=LONG, **how):
    return {"input": text, "response_format": "pcm", "seed": 1, "n_cfm_timesteps": 1} | how


@pytest.fixture(scope="module")
def small_server(tmp_path_factory):
    """A server that speaks one request at a time and lets two wait."""
    from chatterbox_opt import EngineOptions
    from chatterbox_opt.tts import ChatterboxTTS

    with running(
        tmp_path_factory.mktemp("voices"), lambda: ChatterboxTTS.from_mini(engine=EngineOptions(slots=1)),
        max_waiting=2, max_upload=100_000, stall_seconds=1.0,
    ) as server:
        yield ready(server)


def test_a_full_queue_answers_429_with_retry_after(small_server):
    async def crowd():
        async with httpx.AsyncClient(timeout=60) as client:
            speech = body("Hello there.", n_cfm_timesteps=10)  # none ends before the last one has come
            requests = [client.post(f"{small_server.url}/v1/audio/speech", json=speech) for _ in range(8)]
            return await asyncio.gather(*requests)

    before = _metrics(small_server)["chatterbox_refused_total"]
    answers = asyncio.run(crowd())
    codes = sorted(answer.status_code for answer in answers)
    assert set(codes) == {200, 429}
    assert _metrics(small_server)["chatterbox_refused_total"] == before + codes.count(429)
    assert codes.count(200) >= 2
    assert len({answer.content for answer in answers if answer.status_code == 200}) == 1  # nothing is mixed up
    for answer in answers:
        if answer.status_code == 429:
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            assert answer.json()["error"]["type"] == "rate_limit_error"
    assert goes_idle(small_server.service)


def test_the_official_client_retries_until_it_is_served(small_server):
    with openai.OpenAI(base_url=f"{small_server.url}/v1", api_key="x", max_retries=8, timeout=60) as client:

        def ask():
            how = dict(model="tts-1", voice="alloy", input="Hello there.", response_format="pcm")
            return client.audio.speech.create(**how, extra_body={"seed": 1}).content

        sounds = in_threads(*[ask] * 6)
    assert len(set(sounds)) == 1


def test_a_short_text_does_not_wait_for_a_long_one_to_be_cut_up(small_server, monkeypatch):
    submit, may, begun = small_server.model.submit, threading.Event(), threading.Event()

    def slow(text, **how):
        if len(text) > 1000:
            begun.set()
            assert may.wait(60)
        return submit(text[:20], **how)

    monkeypatch.setattr(small_server.model, "submit", slow)
    with httpx.Client(base_url=small_server.url, timeout=60) as client:
        long = threading.Thread(target=client.post, args=["/v1/audio/speech"], kwargs={"json": body("Word. " * 2000)})
        long.start()
        assert begun.wait(60)
        try:
            assert client.post("/v1/audio/speech", json=body("Hello there.")).status_code == 200
        finally:
            may.set()
            long.join(60)
    assert goes_idle(small_server.service)


@pytest.mark.parametrize("turns", range(6))
def test_a_cancellation_during_a_send_is_not_lost(turns):
    """In whichever turn of the event loop it comes."""

    async def cancelled_meanwhile():
        sent = asyncio.get_running_loop().create_future()

        async def send():
            await sent

        task = asyncio.ensure_future(in_time(send(), 30))
        await asyncio.sleep(0.01)
        sent.set_result(None)
        for _ in range(turns):
            await asyncio.sleep(0)
        was_over = task.done()
        task.cancel()
        await asyncio.wait({task})
        return was_over or task.cancelled()

    assert asyncio.run(cancelled_meanwhile())


def test_a_send_that_takes_too_long_raises():
    async def never():
        await asyncio.sleep(60)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(in_time(never(), 0.01))


def test_a_stuck_log_delays_no_request(tmp_path, monkeypatch):
    """Such as a stopped terminal, or a disk that is busy for seconds."""
    stuck, go_on = threading.Event(), threading.Event()

    class Stuck(logging.Handler):
        def emit(self, record):
            stuck.set()
            go_on.wait(60)

    plain = uvicorn.Config.configure_logging

    def configure(config):
        plain(config)
        logging.getLogger("uvicorn.access").handlers = [Stuck()]

    monkeypatch.setattr(uvicorn.Config, "configure_logging", configure)
    with running(tmp_path, load_tiny) as server:
        try:
            for _ in range(3):
                assert httpx.get(f"{server.url}/health/live", timeout=5).status_code == 200
            assert stuck.wait(5)
        finally:
            go_on.set()


def test_a_client_that_leaves_in_mid_stream_frees_its_rows(small_server):
    left = small_server.service.left
    assert goes_idle(small_server.service)
    with httpx.stream("POST", f"{small_server.url}/v1/audio/speech", json=body(), timeout=60) as answer:
        parts = answer.iter_raw()
        assert next(parts)
        assert small_server.model.stats()["calls"] == 1
    spoken = small_server.model.stats()["tokens"]
    assert goes_idle(small_server.service)
    assert small_server.model.stats()["tokens"] - spoken < 150  # of some 1500
    assert small_server.service.left == left + 1


@pytest.mark.parametrize("stream", [True, False], ids=["before its first sound", "while it is made to its end"])
def test_a_client_that_leaves_before_anything_is_sent_frees_its_rows(small_server, stream):
    left = small_server.service.left
    assert goes_idle(small_server.service)
    with sent(small_server, "/v1/audio/speech", json=body(stream=stream, first_chunk=30)):
        assert soon(lambda: small_server.service.live)
        spoken = small_server.model.stats()["tokens"]
    assert goes_idle(small_server.service)
    assert small_server.model.stats()["tokens"] - spoken < 150  # of some 1500
    assert small_server.service.left == left + 1


def test_how_long_a_refused_client_is_to_wait():
    """As long as those before it take, from how long the last ones took; a minute at most."""
    service = Service(ServeSettings())
    assert service.retry_after() == 1, "nothing has been spoken yet"
    service.live = [SimpleNamespace(started=number < 4) for number in range(10)]
    for seconds, wait in ((2.0, 3), (9.0, 14), (100.0, 60), (0.01, 1)):
        service._durations.extend([seconds] * 32)
        assert service.retry_after() == wait


def test_changes_of_voices_and_sessions_have_a_limit(small_server, monkeypatch):
    from websockets.sync.client import connect

    service = small_server.service
    monkeypatch.setattr(service, "changes", 15)
    assert httpx.delete(f"{small_server.url}/v1/audio/voices/nobody").status_code == 404
    monkeypatch.setattr(service, "changes", 16)
    answer = httpx.delete(f"{small_server.url}/v1/audio/voices/nobody")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")
    monkeypatch.setattr(service, "busy", 999)
    service.check_sessions()
    with service.in_hand():
        with pytest.raises(ApiError) as refused:
            service.check_sessions()
        assert (refused.value.status, refused.value.headers["retry-after"]) == (429, "30")
        with connect(f"ws://127.0.0.1:{small_server.port}/v1/audio/speech/stream") as client:
            assert json.loads(client.recv(60))["type"] == "error"


def test_nobody_is_refused_while_there_are_slots(tmp_path):
    with running(tmp_path, load_mini, max_waiting=1) as server:
        ready(server)
        ask = lambda: httpx.post(f"{server.url}/v1/audio/speech", json=body("Hello there."), timeout=60).status_code  # noqa: E731
        assert in_threads(*[ask] * 12) == [200] * 12


def test_whoever_left_before_its_turn_has_none(small_server):
    """Texts that take long to be read out are taken up one after another."""
    service, asked, go_on = small_server.service, [], threading.Event()

    class Slow:
        def __getattr__(self, name):
            return getattr(model, name)

        def submit(self, text, **how):
            asked.append(text)
            go_on.wait(30)
            return model.submit("Hello.", **how)

    async def leave_all():
        speeches = [asyncio.ensure_future(service._enter("x" * 6000 + str(i), {})) for i in range(2)]
        while not asked:
            await asyncio.sleep(0.01)
        for speech in speeches:
            speech.cancel()
        await asyncio.wait(speeches)

    model = service.model
    service.model = Slow()
    try:
        asyncio.run(leave_all())
        go_on.set()
        assert soon(lambda: not model.stats()["calls"])
        service._long_entry.submit(int).result(30)
        assert [text[-1] for text in asked] == ["0"]
    finally:
        service.model = model


def test_a_client_that_leaves_before_its_turn_is_forgotten(small_server, monkeypatch):
    asked, go_on = [], threading.Event()
    real = type(small_server.model).submit

    def slow(model, text, **how):
        asked.append(text)
        go_on.wait(30)
        return real(model, "Hello.", **how)

    monkeypatch.setattr(type(small_server.model), "submit", slow)
    left = small_server.service.left
    try:
        for number in range(3):
            with sent(small_server, "/v1/audio/speech", json=body("x " * 3000 + str(number))):
                assert soon(lambda: asked and small_server.service.waiting() == 1)
            assert soon(lambda: small_server.service.waiting() == 0)
        assert small_server.service.left == left + 3
    finally:
        go_on.set()
    assert goes_idle(small_server.service)
    assert [text[-1] for text in asked] == ["0"]


@pytest.mark.parametrize("path", ["/", "/health", "/health/live", "/health/ready"])
def test_monitors_may_ask_for_the_head_alone(small_server, path):
    answer = httpx.head(small_server.url + path)
    assert answer.status_code == 200
    assert answer.content == b""


def test_a_client_that_does_not_read_is_disconnected(small_server):
    """Its connection is full, so its speech pauses, and in the end its rows are freed."""
    listening = small_server.uvicorn.servers[0].sockets[0]
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # its connections inherit it
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", small_server.port))
    data = json.dumps(body(LONG, speed=0.25)).encode()
    head = "POST /v1/audio/speech HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    client.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
    assert soon(lambda: small_server.model.stats()["calls"])
    spoken = small_server.model.stats()["tokens"]
    assert goes_idle(small_server.service)
    assert small_server.model.stats()["tokens"] - spoken < 1000
    client.close()


def test_a_large_file_is_sent_in_parts():
    """A client that reads a few hundred kB a minute is still there."""
    sent, data = [], bytes(range(256)) * 4096
    service = SimpleNamespace(settings=ServeSettings())
    response = SpeechResponse(service, SimpleNamespace(kind="wav", rate=24_000))

    async def send(message):
        sent.append(message["body"])

    asyncio.run(response._send(send, data))
    assert b"".join(sent) == data
    assert max(map(len, sent)) <= 1 << 18


@pytest.mark.parametrize("most", [1, 100_000, 1_000_000])
def test_the_longest_text_fits_into_a_request(most):
    settings = ServeSettings(max_text=most)  # each character of it may be one that JSON writes as two of six bytes
    assert len(json.dumps({"input": "\U0001f600" * most})) < settings.max_json


def test_metrics(small_server):
    before = _metrics(small_server)
    assert {"chatterbox_refused_total", "chatterbox_engine_underruns_total"} <= set(before)
    assert httpx.post(f"{small_server.url}/v1/audio/speech", json=body("Hello there."), timeout=60).status_code == 200
    after = _metrics(small_server)
    assert after["chatterbox_ready"] == 1
    assert after["chatterbox_engine_finished_total"] == before["chatterbox_engine_finished_total"] + 1
    for name in ("first_sound_seconds", "real_time_factor"):
        buckets = [v for k, v in after.items() if k.startswith(f"chatterbox_engine_{name}_bucket")]
        assert buckets == sorted(buckets)
        assert buckets[-1] == after[f"chatterbox_engine_{name}_count"]
    assert {"chatterbox_engine_rows", "chatterbox_queue"} <= set(after)


def _metrics(server):
    from prometheus_client.parser import text_string_to_metric_families

    text = httpx.get(f"{server.url}/metrics").text
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    return {s.name + str(s.labels.get("le", "")): s.value for s in samples}


def test_while_the_model_is_loaded(tmp_path):
    gate = threading.Event()

    def late():
        gate.wait(30)
        return load_mini()

    with running(tmp_path, late) as server:
        assert httpx.get(f"{server.url}/health/live").status_code == 200
        for path in ("/health", "/health/ready"):
            assert httpx.get(server.url + path).json() == {"status": "loading"}
        for answer in (
            httpx.get(f"{server.url}/health"), httpx.get(f"{server.url}/health/ready"),
            httpx.get(f"{server.url}/v1/models"), httpx.post(f"{server.url}/v1/audio/speech", json=body()),
        ):
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
        assert httpx.get(f"{server.url}/metrics").status_code == 200
        gate.set()
        for path in ("/health", "/health/ready"):
            answer = httpx.get(ready(server).url + path)
            assert (answer.status_code, answer.json()) == (200, {"status": "ready"})


def test_draining_finishes_what_was_accepted(tmp_path):
    with running(tmp_path, load_mini) as server:
        ready(server)
        speech = body(LONG[:170], n_cfm_timesteps=10)  # still being made when the signal comes
        whole = httpx.post(f"{server.url}/v1/audio/speech", json=speech, timeout=60).content
        with httpx.stream("POST", f"{server.url}/v1/audio/speech", json=speech, timeout=60) as answer:
            parts = answer.iter_raw()
            first = next(parts)
            server.uvicorn.handle_exit(15, None)
            assert soon(lambda: httpx.get(f"{server.url}/health/ready").json() == {"status": "draining"})
            assert httpx.get(f"{server.url}/health").status_code == 503
            assert httpx.post(f"{server.url}/v1/audio/speech", json=body()).status_code == 503
            assert first + b"".join(parts) == whole
        assert soon(lambda: server.uvicorn.should_exit, 60)
