"""The server under load: time to the first sound per client, gaps in playback, and rejected requests.

    python benchmarks/benchmark_server.py
    python benchmarks/benchmark_server.py --weights published --model turbo --load 1 16 64 64:8

All clients ask for one text each at the same moment, and read samples as they arrive. `64:8` means 64 clients, of which
8 may wait. Each answer is compared with that of the same request alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

import plots
import report
import workload

TEXTS = (
    "Good morning, and thank you for calling.",
    "The train to the harbour leaves at nine, from the second platform.",
    "I am sorry, there is nobody here by that name.",
    "It will rain this afternoon, and clear up in the evening.",
    "Please turn left at the church, then go straight on to the river.",
    "Your parcel is on its way, and will be with you tomorrow.",
)
GAP = 0.1  # s of silence that a listener notices
NAMES = {"tts": "english", "mtl": "multilingual"}


def main(argv: list[str] | None = None) -> int:
    parser = report.arguments(__doc__)
    parser.add_argument("--model", choices=workload.FAMILIES, default="tts")
    parser.add_argument("--weights", default="mini", help="mini, published, random, or a checkpoint folder")
    usual = [(1, None), (4, None), (16, None), (64, None), (200, None), (200, 200)]
    parser.add_argument("--load", nargs="+", type=load, default=usual, metavar="CLIENTS[:WAITING]")
    parser.add_argument("--waiting", type=report.count, default=64, help="room in the queue, where --load does not say")
    args = report.parse(parser, argv)
    source = workload.weights(args.weights, args.model, args.size, args.work_dir)
    rows = []
    for clients, waiting in args.load:
        waiting = waiting or args.waiting
        with serving(source, args, waiting) as port:
            rows.append(asyncio.run(measure(port, clients, waiting, source)))
    document = report.document("server", args, source, texts=len(TEXTS), gap=GAP) | {"rows": rows}
    path = report.publish(document, args.out)
    plots.safely(plots.server, document, path.with_suffix(".png"))
    return 0 if all(row["lost"] == row["other"] == 0 for row in rows) else 1


def load(text: str) -> tuple[int, int | None]:
    """A load for argparse: clients, and those of them that may wait if it says so."""
    clients, colon, waiting = text.partition(":")
    return report.count(clients), report.count(waiting) if colon else None


@contextlib.contextmanager
def serving(source: workload.Weights, args: Any, waiting: int) -> Iterator[int]:
    """Yields the port of a server in its own process, ready to speak."""
    port = free_port()
    model = "mini" if source.kind == "mini" else NAMES.get(args.model, args.model)
    command = [sys.executable, "-m", "chatterbox_opt", "serve", "--model", model, "--device", args.device]
    command += ["--port", str(port), "--max-waiting", str(waiting), "--voices", str(args.work_dir / "no-voices")]
    if source.folder is not None and source.kind != "mini":
        command += ["--dir", str(source.folder)]
    with running(command, port):
        yield port


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(command: Sequence[str], port: int) -> Iterator[None]:
    """Runs a server until the block ends, which begins once it is ready to speak."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, cwd=workload.ROOT)
        try:
            while not ready(port):
                if process.poll() is not None:
                    said.seek(0)
                    raise SystemExit(f"the server ended: {' '.join(command)}\n{said.read()[-2000:]}")
                time.sleep(0.2)
            yield
        finally:
            process.terminate()
            process.wait(60)


def ready(port: int) -> bool:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5).status == 200
    except OSError:
        return False


async def measure(port: int, clients: int, waiting: int, source: workload.Weights) -> dict[str, Any]:
    alone = [(await ask(port, k, source))["sound"] for k in range(len(TEXTS))]  # also warms up
    begin = time.perf_counter()
    answers = await asyncio.gather(*(ask(port, k % len(TEXTS), source) for k in range(clients)))
    wall = time.perf_counter() - begin
    row = summary(answers, alone, wall) | {"clients": clients, "waiting": waiting}
    workload.say(
        f"{clients} clients, room for {waiting}: {row['answered']} answered, {row['refused']} refused, first sound "
        f"{row['first_p50']:.2f} s (p95 {row['first_p95']:.2f} s), {row['speech_per_second']:.1f} s of speech a second"
    )
    return row


async def ask(port: int, which: int, source: workload.Weights) -> dict[str, Any]:
    """One request, over a connection of its own; plain sockets, as 200 clients share the server's machine."""
    body = {"input": TEXTS[which], "response_format": "pcm", "seed": workload.SEED + which}
    if source.fixed:
        body["max_new_tokens"] = 3 * workload.TOKEN_RATE
    data = json.dumps(body).encode()
    begin = time.perf_counter()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST /v1/audio/speech HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(data) + data
        )
        status = int((await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1])
        came, parts = [], []
        while status == 200 and (size := int(await reader.readline(), 16)):
            parts.append(await reader.readexactly(size))
            await reader.readexactly(2)
            came.append(time.perf_counter() - begin)
        writer.close()
    except (OSError, ValueError, asyncio.IncompleteReadError) as error:
        return {"which": which, "status": 0, "sound": b"", "error": repr(error)}
    return {"which": which, "status": status, "sound": b"".join(parts), "came": came, "sizes": list(map(len, parts))}


def summary(answers: Sequence[dict[str, Any]], alone: Sequence[bytes], wall: float) -> dict[str, Any]:
    answered = [a for a in answers if a["status"] == 200]
    refused = sum(a["status"] == 429 for a in answers)
    seconds = [len(a["sound"]) / 2 / workload.SAMPLE_RATE for a in answered]
    first = sorted(a["came"][0] for a in answered)
    factors = [a["came"][-1] / s for a, s in zip(answered, seconds)]
    return {
        "answered": len(answered),
        "refused": refused,
        "lost": len(answers) - len(answered) - refused,
        "same": sum(a["sound"] == alone[a["which"]] for a in answered),
        "other": sum(not alike(a["sound"], alone[a["which"]]) for a in answered),
        "first_p50": percentile(first, 0.5),
        "first_p95": percentile(first, 0.95),
        "rtf_p50": statistics.median(factors),
        "speech_per_second": sum(seconds) / wall,
        "speech_seconds": sum(seconds),
        "continuous": sum(longest_gap(a) <= GAP for a in answered) / len(answered),
        "wall_seconds": wall,
    }


def alike(one: bytes, other: bytes) -> bool:
    """Whether two waves have equal length and a correlation above 0.9, unlike those of another text, voice or seed."""
    import numpy as np

    a, b = (np.frombuffer(sound, "<i2").astype(np.float64) for sound in (one, other))
    return len(a) == len(b) and float(a @ b) > 0.9 * float(np.sqrt((a @ a) * (b @ b)))


def percentile(values: Sequence[float], share: float) -> float:
    """Returns the smallest of the sorted values that is not exceeded by that fraction of them."""
    return values[max(0, min(len(values) - 1, -int(-share * len(values) // 1) - 1))]


def longest_gap(answer: dict[str, Any]) -> float:
    """Returns the longest silence for a player that waits for late parts, which delays all later ones."""
    over, longest = answer["came"][0], 0.0
    for came, size in zip(answer["came"], answer["sizes"]):
        longest = max(longest, came - over)
        over = max(over, came) + size / 2 / workload.SAMPLE_RATE
    return longest


if __name__ == "__main__":
    sys.exit(main())
