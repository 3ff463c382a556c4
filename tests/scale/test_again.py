"""What a client gets from the proxy if replicas die: one answer, whose head never comes without a body."""

import asyncio
import json

import pytest

pytest.importorskip("starlette", reason="the server is not installed: pip install -e '.[serve]'")

from chatterbox_opt.scale import arrival
from chatterbox_opt.scale.again import MOST_HELD, TRIES, Again
from chatterbox_opt.scale.arrival import LOST, Arrival

HEAD = {"type": "http.response.start", "status": 200, "headers": []}


def part(data, more=True):
    return {"type": "http.response.body", "body": data, "more_body": more}


def refused_by_ray(status):
    return [HEAD | {"status": status, "headers": [(b"content-type", b"text/plain")]}, part(b"words", False)]


def answered(replicas, method="POST", kind=b"application/json", body=(b'{"input": ', b'"Good."}'), leaves=False):
    """What a client is sent if its request goes to these replicas in turn, each a list of what it sends before it ends
    or dies; and the messages that each of them has read of the request."""
    sent, read = [], []
    coming = [{"type": "http.request", "body": data, "more_body": True} for data in body]
    coming[-1]["more_body"] = False

    async def receive():
        return coming.pop(0) if coming else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    async def app(scope, receive, send):
        read.append([])
        more = True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            read[-1].append(message.get("body", b""))
        if leaves:
            await receive()
        for message in replicas[len(read) - 1]:
            await send(message)

    scope = {"type": "http", "method": method, "path": "/v1/audio/speech", "headers": [(b"content-type", kind)]}
    asyncio.run(Again(app)(scope, receive, send))
    return sent, read


def error(sent):
    head, body = sent
    return head["status"], json.loads(body["body"])["error"]["code"], dict(head["headers"]).get(b"retry-after")


def test_a_request_that_got_nothing_goes_to_the_next_replica_as_a_whole():
    whole = [HEAD, part(b"sound"), part(b"", False)]
    for died in ([], [HEAD]):  # before its head, and before its body
        sent, read = answered([died, died, whole])
        assert sent == whole
        assert read == [[b'{"input": "Good."}']] * 3


def test_a_request_with_which_three_replicas_died_is_a_503():
    sent, read = answered([[HEAD]] * TRIES)
    assert error(sent) == (503, "unavailable", b"5")
    assert len(read) == TRIES


def test_a_speech_that_was_being_heard_is_not_begun_anew():
    sent, read = answered([[HEAD, part(b"so")], [HEAD, part(b"sound", False)]])
    assert sent == [HEAD, part(b"so")]
    assert len(read) == 1


@pytest.mark.parametrize(
    "request_",
    [{"kind": b"multipart/form-data; boundary=x"}, {"method": "DELETE"}, {"body": [bytes(MOST_HELD), b"more"]}],
    ids=["upload", "deletion", "too large to keep"],
)
def test_what_may_not_be_repeated_is_a_503(request_):
    body = request_.get("body", [b"first", b"", b"second"])
    sent, read = answered([[]], **request_ | {"body": body})
    assert error(sent)[:2] == (503, "unavailable")
    assert read == [body], "it goes on as it comes"


def test_nothing_is_repeated_for_a_client_that_left():
    assert answered([[]], leaves=True) == ([], [[b'{"input": "Good."}']])


def test_a_client_that_leaves_before_its_request_is_whole_gets_no_replica():
    async def receive():
        return {"type": "http.disconnect"}

    async def nobody(*_):
        raise AssertionError("there is no one to speak to")

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", b"application/json")]}
    asyncio.run(Again(nobody)(scope, receive, nobody))


# ---- a replica that waits for a body which another has taken ----------------------------------------


def through_ray(app, taken, kind=b"application/json"):
    """What a client is sent through `Again` and a proxy that, in the first `taken` tries, loses the body as Ray does
    when a replica takes it and dies before that is known."""
    sent, tries = [], []
    coming = [{"type": "http.request", "body": b'{"input": "Good."}', "more_body": False}]

    async def receive():
        return coming.pop(0) if coming else await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    async def ray(scope, receive, send):
        tries.append(scope["path"])
        if len(tries) <= taken:
            await receive()
        await Arrival(app)(scope, receive, send)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", kind)]}
    asyncio.run(asyncio.wait_for(Again(ray)(scope, receive, send), 20))
    return sent, len(tries)


async def says_what_it_got(scope, receive, send):
    message = await receive()
    await send(HEAD)
    await send(part(message["body"], False))


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(arrival, "PATIENCE", 0.05)
    monkeypatch.setattr(arrival, "SLOW", 0.05)


@pytest.mark.parametrize("taken", [0, 1, TRIES - 1])
def test_a_request_whose_body_was_lost_is_repeated(taken, impatient):
    assert through_ray(says_what_it_got, taken) == ([HEAD, part(b'{"input": "Good."}', False)], taken + 1)


@pytest.mark.parametrize(
    ("taken", "kind", "status"),
    [(TRIES, b"application/json", 503), (1, b"multipart/form-data; boundary=x", 408)], ids=["often", "upload"],
)  # fmt: skip
def test_a_body_that_is_lost_for_good_is_an_error(taken, kind, status, impatient):
    sent, _ = through_ray(says_what_it_got, taken, kind)
    assert error(sent) == ((503, "unavailable", b"5") if status == 503 else (408, "body_missing", None))
    assert LOST.encode() not in dict(sent[0]["headers"])


def test_a_client_may_take_its_time_to_upload(monkeypatch):
    """The proxy reads no upload ahead, so that a replica waits for the client itself."""
    monkeypatch.setattr(arrival, "PATIENCE", 0.01)
    sent = []

    async def receive():
        await asyncio.sleep(0.2)
        return {"type": "http.request", "body": b"sound", "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", b"multipart/form-data")]}
    asyncio.run(asyncio.wait_for(Arrival(says_what_it_got)(scope, receive, send), 20))
    assert sent[-1]["body"] == b"sound"


def test_only_requests_with_a_body_are_waited_for(impatient):
    async def reads_nothing(scope, receive, send):
        await send(HEAD)
        await send(part(b"", False))

    async def never():
        await asyncio.Event().wait()

    for scope in ({"type": "http", "method": "GET"}, {"type": "http", "method": "DELETE"}, {"type": "websocket"}):
        sent = []

        async def send(message, sent=sent):
            sent.append(message)

        asyncio.run(asyncio.wait_for(Arrival(reads_nothing)(scope, never, send), 20))
        assert len(sent) == 2


# ---- Ray's own answers -------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "code"), [(429, "queue_full"), (503, "unavailable"), (408, "unavailable")])
def test_rays_refusals_are_error_objects(status, code):
    sent, _ = answered([refused_by_ray(status)])
    assert error(sent) == (status, code, b"5")
