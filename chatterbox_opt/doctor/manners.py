"""Checks of behaviour: cancellation, concurrent callers, memory over many calls, and after deletion."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch

from ..pipeline import Cancelled
from .clock import drop_workspaces, held_bytes
from .findings import NOT_HERE, Finding, judged
from .numbers import SAME_SOUND
from .patient import FLOAT32, LONG, TEXTS, Patient, off

THREADS = 8
CALLS = 50
GROWTH = {"cuda": 1 << 20, "mps": 1 << 20, "cpu": 32 << 20}  # bytes that many calls may leave: allocators keep some


def watermark(patient: Patient) -> Iterator[Finding]:
    model = patient.model()
    (speech,) = patient.speak(model, (LONG,), 120)
    noise = 0.05 * torch.randn(48_000, generator=torch.Generator().manual_seed(0))
    marked, plain = (
        float(model.watermarker.get_watermark(wave.numpy(), model.sr, round=False).mean())
        for wave in (speech.wav[0], noise)
    )
    yield judged("watermark", marked > 0.5 > plain, f"found in speech ({marked:.2f}), not in noise ({plain:.2f})")


def cancelled(patient: Patient) -> Iterator[Finding]:
    model, event = patient.model(), threading.Event()
    moment: list[float] = []

    def progress(drawn: int, _: int) -> None:
        if drawn >= 10 and not moment:
            moment.append(time.perf_counter())
            event.set()

    try:
        model.generate(LONG, seed=3, max_new_tokens=250, cancel=event, progress=progress)
        yield judged("cancel", False, "the call went on to its end")
    except Cancelled:
        took = time.perf_counter() - moment[0]
        (after,) = patient.speak(model, TEXTS[:1])
        fine = took < 2 and bool(after.wav.numel())
        yield judged("cancel", fine, f"a call ended {1e3 * took:.0f} ms after it was told to; the next one speaks")


def threads(patient: Patient) -> Iterator[Finding]:
    """Concurrent callers, on a GPU each on its own stream, get the same sound as one alone."""
    model, cuda = patient.model(**FLOAT32), patient.device.type == "cuda"
    texts = [TEXTS[i % len(TEXTS)] for i in range(THREADS)]
    wanted = [model.generate(text, seed=i, max_new_tokens=60) for i, text in enumerate(texts)]
    got: list[Any] = [None] * THREADS

    def call(i: int) -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream(patient.device)) if cuda else nullcontext():
                voice = model.conds.to(patient.device)  # computed on the caller's stream
                got[i] = model.generate(texts[i], seed=i, max_new_tokens=60, voice=voice)
        except Exception as problem:
            got[i] = problem

    started = [threading.Thread(target=call, args=(i,)) for i in range(THREADS)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    for result in got:
        if isinstance(result, Exception):
            raise result
    errors = [off(a, b) for a, b in zip(got, wanted)]
    text = f"{sum(e < SAME_SOUND for e in errors)} of {THREADS} callers at once hear what they hear alone"
    where = ", each on a CUDA stream of its own" if cuda else ""
    yield judged("threads", max(errors) < SAME_SOUND, f"{text}{where}: within {max(errors):.1e}", error=max(errors))


def deleted(patient: Patient) -> Iterator[Finding]:
    gone, took, left = [], 0, []
    patient.forget()  # with the graphs of its models
    drop_workspaces(patient.device)
    for _ in range(2):
        before = held_bytes(patient.device)
        model = patient.load()
        patient.speak(model, TEXTS[:1], 20)
        took = (held_bytes(patient.device) or 0) - (before or 0)
        gone.append(weakref.ref(model))
        del model
        gc.collect()
        drop_workspaces(patient.device)
        left.append(held_bytes(patient.device) or 0)
    if any(model() is not None for model in gone):
        yield judged("deleted", False, "a model that nobody holds is not collected")
    elif patient.device.type == "cpu":
        yield judged("deleted", True, "a model that nobody holds is collected")
    else:  # libraries keep memory after the first model; the second must not need more
        more = left[1] - left[0]
        text = f"of {took / 1e6:.0f} MB a second model leaves {more / 1e6:.1f} MB behind, beyond what the first left"
        yield judged("deleted", more <= max(0.02 * took, 2 << 20), text, left=left, took=took)


def memory(patient: Patient) -> Iterator[Finding]:
    model = patient.model()

    def calls(count: int) -> int | None:
        for i in range(count):
            patient.speak(model, (TEXTS[i % 2],), 12)
        return held_bytes(patient.device)

    before = calls(6)
    if before is None:
        yield Finding("memory", NOT_HERE, "this system does not tell what a process holds")
        return
    grown = calls(CALLS) - before
    text = f"{CALLS} calls leave {grown / 1e6:.1f} MB behind, {before / 1e6:.0f} MB were held before"
    yield judged("memory", grown <= GROWTH[patient.device.type], text, grown=grown)
