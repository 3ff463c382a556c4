"""What a request passes before a route sees it: its key, its host, the page it comes from, the size of its body."""

import asyncio
import contextlib
import socket

import httpx
import pytest
from serving import goes_idle, load_mini, load_tiny, ready, running
from threads import soon

from chatterbox_opt.serve.limits import Gate
from chatterbox_opt.serve.settings import ServeSettings


@pytest.fixture(scope="module")
def small_server(tmp_path_factory):
    """A server that takes no large recordings, and waits for nobody for long."""
    with running(tmp_path_factory.mktemp("voices"), load_mini, max_upload=100_000, stall_seconds=1.0) as server:
        yield ready(server)


def test_api_key(tmp_path):
    with running(tmp_path, load_mini, api_key="secret-ключ") as server:
        ready(server)
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}):
            for path in ("/v1/models", "/v1/audio/voices", "/metrics", "/tts", "/nothing", "/openapi.json"):
                answer = httpx.get(server.url + path, headers=headers)
                assert answer.status_code == 401
                assert answer.json()["error"]["type"] == "authentication_error"
        right = {"authorization": "Bearer secret-ключ".encode()}
        assert httpx.get(f"{server.url}/v1/models", headers=right).status_code == 200
        for path in ("/", "/page.js", "/health", "/health/live", "/health/ready"):
            assert httpx.get(server.url + path).status_code == 200


@pytest.mark.parametrize("allowed", [(), ("http://chat.example",), ("*",)])
def test_pages_of_other_sites(tmp_path, allowed):
    with running(tmp_path, load_mini, allowed_origins=allowed) as server:
        ready(server)
        here = {"origin": server.url}
        assert httpx.get(f"{server.url}/v1/models", headers=here).status_code == 200
        answer = httpx.get(f"{server.url}/v1/models", headers={"origin": "http://chat.example"})
        assert answer.status_code == (200 if allowed else 403)
        assert ("access-control-allow-origin" in answer.headers) == bool(allowed)
        wish = {"origin": "http://chat.example", "access-control-request-method": "POST"}
        preflight = httpx.options(f"{server.url}/v1/audio/speech", headers=wish)
        assert ("access-control-allow-origin" in preflight.headers) == bool(allowed)
        for page in ("http://chat.example/a/page", "http://evil.example/", None):  # with an image, no origin is sent
            marks = {"sec-fetch-site": "cross-site"} | ({} if page is None else {"referer": page})
            answer = httpx.get(f"{server.url}/v1/models", headers=marks)
            fine = allowed == ("*",) or (allowed and page and page.startswith(allowed[0]))
            assert answer.status_code == (200 if fine else 403)
            assert httpx.get(server.url, headers=marks).status_code == 200, "a link to the page"
        assert httpx.get(f"{server.url}/v1/models", headers={"sec-fetch-site": "same-origin"}).status_code == 200
        for strange in ("http://evil.example", "null", "http://[", f"http://evil.example#{server.url}", "://"):
            other = httpx.get(f"{server.url}/v1/models", headers={"origin": strange})
            assert other.status_code == (200 if allowed == ("*",) else 403)


@pytest.mark.parametrize(
    ("host", "allowed", "name", "status"),
    [
        ("127.0.0.1", (), "evil.example:8004", 403),  # a page's own name, which points here
        ("127.0.0.1", (), "evil.localhost.example", 403), ("127.0.0.1", (), "[::1", 403),
        ("127.0.0.1", (), "localhost:8004", 200), ("127.0.0.1", (), "127.0.0.1:1", 200),
        ("127.0.0.1", (), "[::1]:8004", 200), ("127.0.0.1", (), "a.localhost", 200), ("127.0.0.1", (), "", 200),
        ("127.0.0.1", ("https://tts.example/",), "tts.example", 200),  # of a proxy
        ("127.0.0.1", ("*",), "tts.example", 200), ("0.0.0.0", (), "tts.example:8004", 200),
    ],
)
def test_a_server_for_its_own_machine_has_no_other_names(host, allowed, name, status):
    from starlette.responses import PlainTextResponse
    from starlette.testclient import TestClient

    gate = Gate(PlainTextResponse("fine"), ServeSettings(host=host, allowed_origins=allowed), asyncio.Event())
    client = TestClient(gate, base_url="http://127.0.0.1:8004")
    headers = {"host": name, "origin": f"http://{name}"} if name else {"host": ""}
    assert client.get("/v1/models", headers=headers).status_code == status
    assert client.get("/health", headers={"host": name}).status_code == 200


@pytest.mark.parametrize("origin", ["http://a.example/", " HTTP://A.example", "http://a.example"])
def test_an_origin_is_taken_as_browsers_write_it(origin):
    assert ServeSettings(allowed_origins=(origin,)).allowed_origins == ("http://a.example",)


@pytest.mark.parametrize("origin", ["localhost:8000", "http://a.example/page", "['http://a', 'http://b']", "", "http://"])
def test_an_origin_that_no_page_has_is_refused(origin):
    with pytest.raises(ValueError, match="allow-origin"):
        ServeSettings(allowed_origins=(origin,))


def test_blanks_around_a_key_do_not_count():
    assert ServeSettings(api_key=" secret\n").api_key == "secret"


def test_large_bodies_are_refused_before_they_are_read(small_server):
    ten_megabytes = b'{"input": "' + b"x" * 10_000_000 + b'"}'
    answer = httpx.post(
        f"{small_server.url}/v1/audio/speech", content=ten_megabytes, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "too_large"

    def in_parts():
        for _ in range(100):
            yield b"x" * 100_000

    as_json = {"content-type": "application/json"}
    answer = httpx.post(f"{small_server.url}/v1/audio/speech", content=in_parts(), headers=as_json)
    assert answer.status_code == 413
    files = {"audio_sample": ("a.wav", b"x" * 200_000)}
    answer = httpx.post(f"{small_server.url}/v1/audio/voices", data={"name": "a"}, files=files)
    assert answer.status_code == 413
    assert goes_idle(small_server.service)


@contextlib.contextmanager
def half_sent(server, path="voices", kind="multipart/form-data; boundary=b"):
    """A request that says that more comes than there does."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        head = f"POST /v1/audio/{path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\ncontent-length: 50000"
        client.sendall(head.encode() + b"\r\n\r\n--b\r\n")
        yield client


@pytest.mark.parametrize("where", [("voices",), ("speech", "application/json")])
def test_half_a_request_is_not_waited_for(small_server, where):
    with half_sent(small_server, *where) as client:
        answer = b""
        while part := client.recv(4096):
            answer += part
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"Nothing more of the request came for 1 s" in answer


def test_many_halves_of_requests_take_no_more_room(tmp_path):
    name = {"name": "a"}
    with running(tmp_path, load_mini) as server, contextlib.ExitStack() as stack:
        ready(server)
        for _ in range(16):
            stack.enter_context(half_sent(server))
        sending = lambda: httpx.post(f"{server.url}/v1/audio/voices", data=name, files={"audio_sample": b"x"})  # noqa: E731
        assert soon(lambda: sending().status_code == 429)
        assert httpx.get(f"{server.url}/v1/models").status_code == 200
        stack.close()
        assert soon(lambda: sending().status_code == 400)


def test_half_a_request_does_not_keep_the_server_from_its_end(tmp_path, caplog):
    with running(tmp_path, load_tiny) as server:
        ready(server)
        with half_sent(server) as client:
            server.uvicorn.handle_exit(15, None)
            assert client.recv(4096).startswith(b"HTTP/1.1 503 ")
            assert soon(lambda: server.uvicorn.should_exit)
    assert "Traceback" not in caplog.text
