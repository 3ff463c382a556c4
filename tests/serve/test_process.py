"""The command itself, as a process: how it starts, what a signal does, what it says when it cannot."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest


def free_port():
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(tmp_path, *words):
    port = free_port()
    command = [sys.executable, "-m", "chatterbox_opt", "serve", "--model", "mini", "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command += ["--port", str(port), "--voices", str(tmp_path / "voices"), *words]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{port}"
    until = time.monotonic() + 60
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health/ready").status_code == 200:
                return process, url
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_signal_under_load_loses_nothing_that_was_accepted(tmp_path):
    process, url = start(tmp_path)
    body = {"input": "This is said to its end, whatever comes in between. " * 2, "response_format": "pcm", "seed": 1}
    whole = httpx.post(f"{url}/v1/audio/speech", json=body, timeout=60).content
    got: list[bytes] = []
    began = threading.Barrier(4)

    def listen():
        with httpx.stream("POST", f"{url}/v1/audio/speech", json=body, timeout=60) as answer:
            parts = answer.iter_raw()
            first = next(parts)
            began.wait(60)
            got.append(first + b"".join(parts))

    threads = [threading.Thread(target=listen) for _ in range(3)]
    for thread in threads:
        thread.start()
    began.wait(60)
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(60)
    assert got == [whole] * 3
    assert process.wait(60) == 0


def test_a_second_signal_waits_for_nobody(tmp_path):
    process, url = start(tmp_path)
    body = {"input": "This is said to its end, whatever comes in between. " * 60, "response_format": "pcm"}
    with httpx.stream("POST", f"{url}/v1/audio/speech", json=body, timeout=60) as answer:
        parts = answer.iter_raw()
        next(parts)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(httpx.RemoteProtocolError):
            b"".join(parts)
    assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dir", "nowhere", "--device", "cpu"], "nowhere"),
        (["--model", "mini", "--dir", "."], "leave out --dir or --model"),
        (["--model", "mini", "--port", "70000"], "port"),
        (["--model", "mini", "--max-waiting", "0"], "max_waiting"),
        (["--model", "mini", "--api-key", " "], "key is empty"),
        (["--model", "mini", "--api-key-file", "nowhere"], "nowhere"),
        (["--model", "mini", "--api-key", "a", "--api-key-file", "b"], "not both"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(words, said, capsys, tmp_path, monkeypatch):
    from chatterbox_opt.cli import main

    monkeypatch.chdir(tmp_path)
    port = [] if "--port" in words else ["--port", str(free_port())]
    assert main(["serve", *words, *port]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("chatterbox-opt: ")]
    assert len(lines) == 1
    assert said in lines[0]


def test_without_the_extra_it_says_what_to_install(monkeypatch, capsys):
    from chatterbox_opt.cli import main

    monkeypatch.setitem(sys.modules, "chatterbox_opt.serve.run", None)
    assert main(["serve", "--model", "mini"]) == 1
    assert "chatterbox-opt[serve]" in capsys.readouterr().err


def test_the_package_does_without(tmp_path):
    """`import chatterbox_opt`, and the shell's other commands, need nothing of the server's."""
    code = "import sys, chatterbox_opt, chatterbox_opt.cli; print([m for m in sys.modules if m in " \
           "('torch', 'fastapi', 'uvicorn', 'starlette', 'pydantic', 'wyoming')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
