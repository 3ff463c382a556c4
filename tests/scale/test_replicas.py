"""The server on a cluster: what a client hears, whatever becomes of the replicas behind one address."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
from serving import recording

pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
httpx = pytest.importorskip("httpx", reason="the server's clients are not installed: pip install -e '.[serve-test]'")
pytestmark = pytest.mark.slow

TEXTS = ("Good morning, and thank you for calling.", "I am sorry, nobody is here.", "Please turn left.", "It rains.")


def free_port():
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def proxy(cluster):
    """The address under which all applications are found."""
    from ray import serve

    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()  # for this module's next turn, if tests of others come between


@contextlib.contextmanager
def served(load, folder, fewest=2, most=2, **more):
    from ray import serve

    from chatterbox_opt.scale.cluster import Share
    from chatterbox_opt.scale.replica import application
    from chatterbox_opt.serve.settings import ServeSettings

    settings = ServeSettings(model_id="mini", voices_dir=folder, max_waiting=1000, drain_seconds=30)
    serve.run(application(settings, load, Share(fewest, most, 1.0, 0.0), **more), name="speech", route_prefix="/")
    try:
        yield
    finally:
        serve.delete("speech")


@pytest.fixture(scope="module")
def mini(proxy, tmp_path_factory):
    from chatterbox_opt import ChatterboxTTS

    with served(partial(ChatterboxTTS.from_mini, "cpu"), tmp_path_factory.mktemp("voices")):
        yield proxy


def replicas():
    from ray.util import list_named_actors

    return [one["name"] for one in list_named_actors(all_namespaces=True) if "SERVE_REPLICA" in one["name"]]


def body(which, **more):
    return {"input": TEXTS[which % len(TEXTS)], "response_format": "pcm", "seed": which % len(TEXTS), **more}


def ask(url, which, timeout=120):
    """Status, sound, and whether it was broken off."""
    parts = []
    try:
        with httpx.stream("POST", f"{url}/v1/audio/speech", json=body(which), timeout=timeout) as answer:
            status, told = answer.status_code, answer.headers
            parts.extend(answer.iter_raw())
    except httpx.RemoteProtocolError:
        return {"which": which, "status": status if parts else 0, "sound": b"".join(parts), "broken": True}
    return {"which": which, "status": status, "sound": b"".join(parts), "broken": False, "headers": told}


def all_at_once(url, number, meanwhile=lambda: None):
    answers = []
    threads = [threading.Thread(target=lambda k=k: answers.append(ask(url, k))) for k in range(number)]
    for thread in threads:
        thread.start()
    meanwhile()
    for thread in threads:
        thread.join(180)
    assert len(answers) == number
    return answers


def test_served_sound_is_the_librarys(mini):
    import torch

    from chatterbox_opt import ChatterboxTTS
    from chatterbox_opt.audio.io import pcm16

    torch.set_num_threads(1)  # as a replica of one core has
    model = ChatterboxTTS.from_mini("cpu")
    for which, text in enumerate(TEXTS):
        wanted = b"".join(map(pcm16, model.generate_stream(text, seed=which)))
        assert ask(mini, which)["sound"] == wanted
    model.close()


def test_all_routes_are_there(mini):
    import openai

    client = openai.OpenAI(base_url=f"{mini}/v1", api_key="none", max_retries=0, timeout=60)
    sound = client.audio.speech.create(model="tts-1", voice="alloy", input="Hello there.", response_format="mp3")
    assert len(sound.content) > 1000
    assert httpx.get(f"{mini}/health/ready").json() == {"status": "ready"}
    assert "chatterbox_ready 1.0" in httpx.get(f"{mini}/metrics").text
    assert "<html" in httpx.get(mini).text
    assert httpx.get(f"{mini}/v1/models").json()["data"][0]["id"] == "mini"
    wrong = httpx.post(f"{mini}/v1/audio/speech", json={"input": "Hello.", "nonsense": 1})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "nonsense")
    assert len(wrong.headers.get_list("x-request-id")) == 1
    with httpx.stream("POST", f"{mini}/v1/audio/speech", json=body(0, stream_format="sse"), timeout=60) as answer:
        kinds = [json.loads(line[6:])["type"] for line in answer.iter_lines() if line.startswith("data: ")]
    assert kinds[0] == "speech.audio.delta"
    assert kinds[-1] == "speech.audio.done"


def test_ray_has_the_figures_of_each_replica(mini):
    import ray

    ports = {node["MetricsExportPort"] for node in ray.nodes() if node["Alive"]}
    wanted = len(replicas())

    def told():
        lines = "".join(httpx.get(f"http://127.0.0.1:{port}/metrics").text for port in ports).splitlines()
        return len({line for line in lines if line.startswith("ray_chatterbox_ready{")}) == wanted

    wait_until(told, time.monotonic() + 40)


def test_text_that_comes_while_it_is_written(mini):
    from websockets.sync.client import connect

    with connect(mini.replace("http", "ws") + "/v1/audio/speech/stream") as socket:
        socket.send(json.dumps({"type": "session.config", "response_format": "pcm"}))
        for part in ("Good morning, and thank you ", "for calling. ", "Nobody is here, I am sorry to say."):
            socket.send(json.dumps({"type": "input.text", "text": part}))
        socket.send(json.dumps({"type": "input.done"}))
        said, sound = [], b""
        while not said or said[-1]["type"] != "session.done":
            message = socket.recv(60)
            if isinstance(message, bytes):
                sound += message
            else:
                said.append(json.loads(message))
    assert [one["type"] for one in said if one["type"] == "audio.start"] == ["audio.start"] * 2
    assert len(sound) > 24_000


def test_a_client_that_leaves_frees_its_rows(mini):
    long = body(0, input="This is said to its end, whatever comes in between. " * 100)
    with httpx.stream("POST", f"{mini}/v1/audio/speech", json=long, timeout=60) as answer:
        next(answer.iter_raw())

    def idle():
        figures = dict(line.split() for line in httpx.get(f"{mini}/metrics").text.splitlines() if line[:1] not in "#")
        return figures["chatterbox_open"] == figures["chatterbox_engine_live"] == "0.0"

    # Each replica has figures of its own, and either may be the one that tells. To its end it would take minutes.
    wait_until(lambda: all(idle() for _ in range(12)), time.monotonic() + 20)


def test_first_sound_is_as_soon_as_from_the_plain_server(mini, tmp_path):
    port = free_port()
    words = ["serve", "--model", "mini", "--device", "cpu", "--port", str(port), "--voices", str(tmp_path)]
    how = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "stderr": subprocess.DEVNULL}
    plain = subprocess.Popen([sys.executable, "-m", "chatterbox_opt", *words], **how)
    try:
        urls = [mini, f"http://127.0.0.1:{port}"]
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{urls[1]}/health/ready").status_code == 200:
                    break
            assert time.monotonic() < until
            time.sleep(0.1)
        for _ in range(4):  # both replicas, and the plain server, have spoken before
            all_at_once(mini, 2)
            ask(urls[1], 0)
        # Other tests run beside this one: the least of each, over as many turns as an undisturbed one of both takes.
        through, direct = float("inf"), float("inf")
        for turn in range(90):
            through, direct = min(through, first_sound(mini)), min(direct, first_sound(urls[1]))
            if turn >= 15 and through < max(direct + 0.015, 1.2 * direct):
                break
    finally:
        plain.terminate()
        plain.wait(60)
    print(f"first sound: {1000 * through:.0f} ms through Ray, {1000 * direct:.0f} ms from the plain server")
    assert through < max(direct + 0.015, 1.2 * direct)


def test_the_command_serves_until_a_signal_and_finishes_what_it_accepted(tmp_path):
    """On a cluster of its own, whose proxies it tells what to do."""
    port = free_port()
    words = ["serve", "--model", "mini", "--device", "cpu", "--ray", "--workers", "1", "--worker-cpus", "1"]
    words += ["--port", str(port), "--voices", str(tmp_path)]
    command = [sys.executable, "-m", "chatterbox_opt", *words]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    said = ""
    while not said.startswith("Ready to speak"):
        said = process.stdout.readline()
        assert said or process.poll() is None
    url = said.split()[-1]
    assert url == f"http://127.0.0.1:{port}"
    whole = ask(url, 0)
    assert len(whole["headers"].get_list("x-request-id")) == 1  # Ray's own is left out
    with httpx.stream("POST", f"{url}/v1/audio/speech", json=body(0), timeout=60) as answer:
        parts = answer.iter_raw()
        first = next(parts)
        process.terminate()
        assert first + b"".join(parts) == whole["sound"]
    assert process.wait(60) == 0


def first_sound(url):
    began = time.perf_counter()
    with httpx.stream("POST", f"{url}/v1/audio/speech", json=body(0), timeout=60) as answer:
        parts = answer.iter_raw()
        next(parts)
        took = time.perf_counter() - began
        list(parts)
    return took


CLIENTS = int(os.environ.get("CLIENTS", "40"))


def test_a_replica_that_dies_under_load_takes_nothing_with_it_but_what_was_being_heard(mini):
    import numpy as np
    import ray

    whole = {which: ask(mini, which)["sound"] for which in range(len(TEXTS))}
    killed = replicas()[0]

    def kill():
        time.sleep(1.5)
        ray.kill(ray.get_actor(killed, namespace="serve"))

    answers = all_at_once(mini, CLIENTS, kill)
    heard = [one for one in answers if one["status"] == 200]
    broken = [one for one in heard if one["broken"]]
    refused = [one for one in answers if one["status"] in (429, 503)]
    print(f"{len(heard) - len(broken)} heard, {len(broken)} broken off, {len(refused)} refused")
    assert len(heard) + len(refused) == CLIENTS
    assert all(one["sound"] for one in broken)
    assert len(broken) <= 32  # as many as were at the replica
    for one in heard:
        wanted = np.frombuffer(whole[one["which"] % len(TEXTS)], "<i2").astype(float)
        got = np.frombuffer(one["sound"], "<i2").astype(float)
        assert len(got) == len(wanted) or one["broken"]
        wanted = wanted[: len(got)]
        assert got @ wanted > 0.9 * np.sqrt((got @ got) * (wanted @ wanted))
    until = time.monotonic() + 60
    while len(replicas()) < 2 or killed in replicas():  # another one takes its place
        assert time.monotonic() < until
        time.sleep(0.2)
    assert ask(mini, 0)["sound"] == whole[0]


def test_a_second_replica_comes_under_load_and_goes_again(proxy, mini, tmp_path):
    """In the place of the others' replicas: they are deployed anew."""
    from chatterbox_opt import ChatterboxTTS

    soon = {"target_ongoing_requests": 2, "upscale_delay_s": 0, "downscale_delay_s": 2, "look_back_period_s": 2.5}
    scaling = {"min_replicas": 1, "max_replicas": 2, **soon}
    load = partial(ChatterboxTTS.from_mini, "cpu")
    with served(load, tmp_path, 1, 2, autoscaling_config=scaling):
        whole = {which: ask(proxy, which)["sound"] for which in range(len(TEXTS))}
        seen, going = set(), threading.Event()

        def keep_asking(k):
            while not going.is_set():
                answer = ask(proxy, k)
                assert (answer["status"], len(answer["sound"])) == (200, len(whole[k % len(TEXTS)]))
                seen.add(k)

        threads = [threading.Thread(target=keep_asking, args=[k]) for k in range(8)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 90
        try:
            wait_until(lambda: len(replicas()) == 2, until)
        finally:
            going.set()
            for thread in threads:
                thread.join(60)
        assert seen == set(range(8))
        wait_until(lambda: len(replicas()) == 1, until)
        assert ask(proxy, 1)["sound"] == whole[1]


def wait_until(true, until):
    while not true():
        assert time.monotonic() < until
        time.sleep(0.2)


@pytest.mark.parametrize("where", ["{}", "dir::file://{}"], ids=["folder", "url"])
def test_a_voice_that_one_replica_was_brought_is_spoken_by_all(where, proxy, tmp_path):
    from chatterbox_opt import ChatterboxTTS

    with served(partial(ChatterboxTTS.from_random, enable_watermark=False), where.format(tmp_path)):
        files = {"audio_sample": ("x.wav", recording(), "audio/wav")}
        made = httpx.post(f"{proxy}/v1/audio/voices", data={"name": "Anna"}, files=files, timeout=60)
        assert made.status_code == 200
        spoken = {"input": "Hello.", "response_format": "pcm", "seed": 1, "max_new_tokens": 25}
        answers = [  # of either replica, whichever it is
            httpx.post(f"{proxy}/v1/audio/speech", json=spoken | {"voice": voice}, timeout=60)
            for voice in ["Anna"] * 8 + ["default"]
        ]
        assert [answer.status_code for answer in answers] == [200] * 9
        assert len({answer.content for answer in answers}) == 2
        assert httpx.delete(f"{proxy}/v1/audio/voices/Anna").status_code == 200
        for _ in range(8):
            assert "Anna" not in [voice["name"] for voice in httpx.get(f"{proxy}/v1/audio/voices").json()["voices"]]
