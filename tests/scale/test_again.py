"""What a client gets from the proxy if replicas die: one answer, whose head never comes without a body."""

import asyncio
import json

import pytest

pytest.importorskip("starlette", reason="the server is not installed: pip install -e '.[serve]'")

from chatterbox_opt.scale.again import MOST_HELD, TRIES, Again

HEAD = {"type": "http.response.start", "status": 200, "headers": []}


def part(data, more=True):
    return {"type": "http.response.body", "body": data, "more_body": more}


def refused_by_ray(status):
    return [HEAD | {"status": status, "headers": [(b"content-type", b"text/plain")]}, part(b"words", False)]


def answered(replicas, method="POST", kind=b"application/json", body=(b'{"input": ', b'"Good."}'), leaves=False):
    """What a client is sent if its request goes to these replicas in turn, each a list of what it sends before it ends
    or dies; and what each of them has read of the request."""
    sent, read = [], []
    coming = [{"type": "http.request", "body": data, "more_body": True} for data in body]
    coming[-1]["more_body"] = False

    async def receive():
        return coming.pop(0) if coming else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    async def app(scope, receive, send):
        read.append(b"")
        more = True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            read[-1] += message.get("body", b"")
        if leaves:
            await receive()
        for message in replicas[len(read) - 1]:
            await send(message)

    scope = {"type": "http", "method": method, "path": "/v1/audio/speech", "headers": [(b"content-type", kind)]}
    asyncio.run(Again(app)(scope, receive, send))
    return sent, read


def error(sent):
    head, body = sent
    return head["status"], json.loads(body["body"])["error"]["code"], dict(head["headers"])[b"retry-after"]


def test_a_request_that_got_nothing_goes_to_the_next_replica_as_a_whole():
    whole = [HEAD, part(b"sound"), part(b"", False)]
    for died in ([], [HEAD]):  # before its head, and before its body
        sent, read = answered([died, died, whole])
        assert sent == whole
        assert read == [b'{"input": "Good."}'] * 3


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
    sent, read = answered([[]], **request_)
    assert error(sent)[:2] == (503, "unavailable")
    assert len(read) == 1


def test_nothing_is_repeated_for_a_client_that_left():
    assert answered([[]], leaves=True) == ([], [b'{"input": "Good."}'])


@pytest.mark.parametrize(("status", "code"), [(429, "queue_full"), (503, "unavailable"), (408, "unavailable")])
def test_rays_refusals_are_error_objects(status, code):
    sent, _ = answered([refused_by_ray(status)])
    assert error(sent) == (status, code, b"5")
