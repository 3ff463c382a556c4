"""The command as a process: start, signals, error messages."""

import os
import signal
import socket
import subprocess
import sys
import threading

import httpx
import pytest
from threads import soon


def start(tmp_path, *words):
    """Returns the process and its URL once it has its model."""
    command = [sys.executable, "-m", "chatterbox_opt", "serve", "--model", "mini", "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command += ["--port", "0", "--voices", str(tmp_path / "voices"), *words]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    *_, told = log_until(process, "Uvicorn running on ")
    url = told.partition("running on ")[2].split()[0]
    assert soon(lambda: process.poll() is not None or httpx.get(f"{url}/health/ready").status_code == 200, 60)
    assert process.poll() is None, process.stderr.read()
    return process, url


def log_until(process, words):
    """Returns the lines that come up to one with these words, for which it has a minute."""
    too_late = threading.Timer(60, process.kill)
    too_late.start()
    lines = []
    for line in iter(process.stderr.readline, ""):
        lines.append(line.rstrip("\n"))
        if words in line:
            too_late.cancel()
            return lines
    raise AssertionError("\n".join(lines))


def test_sigterm_lets_accepted_requests_finish(tmp_path):
    process, url = start(tmp_path)
    body = {"input": "This is said to its end, whatever comes in between. " * 2, "response_format": "pcm", "seed": 1}
    body["n_cfm_timesteps"] = 1  # soon made
    whole = httpx.post(f"{url}/v1/audio/speech", json=body, timeout=60).content
    received: list[bytes] = []
    started = threading.Barrier(4)

    def listen():
        with httpx.stream("POST", f"{url}/v1/audio/speech", json=body, timeout=60) as answer:
            parts = answer.iter_raw()
            first = next(parts)
            started.wait(60)
            received.append(first + b"".join(parts))

    threads = [threading.Thread(target=listen) for _ in range(3)]
    for thread in threads:
        thread.start()
    started.wait(60)
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(60)
    assert received == [whole] * 3
    assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("number", "again", "words", "why"),
    [
        (signal.SIGINT, "press Ctrl-C again", (), "Stopped at once"),
        (signal.SIGTERM, "send the signal again", (), "Stopped at once"),
        (signal.SIGTERM, "send the signal again", ("--drain-seconds", "0.7"), "Not finished within 0.7 s"),
    ],
    ids=["a second Ctrl-C", "a second SIGTERM", "drain seconds"],
)
def test_a_speech_that_is_not_waited_for_is_cut_off_and_told_in_a_line(tmp_path, number, again, words, why):
    process, url = start(tmp_path, *words)
    body = {"input": "This is said to its end, whatever comes in between. " * 60, "response_format": "pcm"}
    with httpx.stream("POST", f"{url}/v1/audio/speech", json=body, timeout=60) as answer:
        parts = answer.iter_raw()
        next(parts)
        process.send_signal(number)
        lines = log_until(process, "Finishing")
        if not words:
            process.send_signal(number)
        with pytest.raises(httpx.RemoteProtocolError):
            b"".join(parts)
    assert process.wait(60) == 0
    lines += process.stderr.read().splitlines()
    begin = f"INFO:     Finishing 1 speech, for up to {'0.7' if words else '120'} s; {again} to stop at once"
    told = lines.index(begin)
    assert lines[told + 1] == f"WARNING:  {why}: 1 speech cut off"
    assert all(line.startswith("INFO: ") for line in lines[:told] + lines[told + 2 :]), "no traceback"


def test_half_a_request_does_not_keep_it_from_its_end(tmp_path):
    process, url = start(tmp_path)
    with socket.create_connection(("127.0.0.1", httpx.URL(url).port)) as client:
        client.sendall(b"POST /v1/audio/speech HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        httpx.get(f"{url}/health/live")  # after which it has seen what came before
        process.send_signal(signal.SIGINT)
        assert client.recv(100).startswith(b"HTTP/1.1 503 ")
        assert process.wait(60) == 0
    log = process.stderr.read()
    assert "timeout graceful shutdown exceeded" not in log, "uvicorn's own wait"
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dir", "nowhere", "--device", "cpu"], "nowhere"),
        (["--model", "mini", "--dir", "."], "leave out --dir or --model"),
        (["--model", "mini", "--port", "70000"], "port"),
        (["--model", "mini", "--max-waiting", "0"], "max_waiting"),
        (["--model", "mini", "--max-upload-mb", "0"], "--max-upload-mb 0: a number from 1 to 4096"),
        (["--model", "mini", "--max-upload-mb", "4097"], "--max-upload-mb 4097"),
        (["--model", "mini", "--api-key", " "], "key is empty"),
        (["--model", "mini", "--api-key-file", "nowhere"], "nowhere"),
        (["--model", "mini", "--api-key", "a", "--api-key-file", "b"], "not both"),
    ],
)
def test_invalid_options_are_one_line(words, message, capsys, tmp_path, monkeypatch):
    from chatterbox_opt.cli import main

    monkeypatch.chdir(tmp_path)
    port = [] if "--port" in words else ["--port", "0"]
    assert main(["serve", *words, *port]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("chatterbox-opt: ")]
    assert len(lines) == 1
    assert message in lines[0]


def test_a_missing_extra_names_its_installation(monkeypatch, capsys):
    from chatterbox_opt.cli import main

    monkeypatch.setitem(sys.modules, "chatterbox_opt.serve.run", None)
    assert main(["serve", "--model", "mini"]) == 1
    assert "chatterbox-opt[serve]" in capsys.readouterr().err
