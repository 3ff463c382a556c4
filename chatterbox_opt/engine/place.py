"""The engine's place on the device. One thread at a time is in it: the one that drives, or another between two steps.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch

from ..computing import computing
from ..device_lock import device_lock, holds_device
from .recording import own_stream

LOOK = 0.02  # s between two looks for new and cancelled calls, while all work waits for listeners or other threads
PATIENCE = 30.0  # s that idle() waits for a listener


class Place:
    """Base class of Driver. The engine implements `step()`, `busy()` and `end_all()`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = own_stream(device) if device.type == "cuda" else None
        self._turn = threading.Lock()  # held by the thread that is in the place
        self._changed = threading.Condition()
        self._driving: int | None = None  # ident of that thread
        self._asked: set[object] = set()  # one for each thread that waits for it to stop between two steps
        self.held = False  # new calls wait in the inbox
        self._closed, self._process = False, os.getpid()

    def step(self) -> bool:
        raise NotImplementedError

    def busy(self) -> bool:
        raise NotImplementedError

    def end_all(self, error: BaseException) -> None:
        raise NotImplementedError

    def check_may_wait(self) -> None:
        """Raises RuntimeError on the thread that drives, which would wait for itself."""
        if self._driving == threading.get_ident():
            raise RuntimeError("a model was called from inside its own callback (progress, notify, ...), which would "
                               "wait for itself")

    def check_others_may_work(self) -> None:
        """Raises RuntimeError on a thread that keeps all others from the device: it would wait for them for ever."""
        if holds_device(self.device):
            raise RuntimeError("inside a callback (progress, notify, ...) of one model another was called that is "
                               "speaking for others, and on this device that waits for the callback's end")

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """Inside, no thread drives, and this one is in the engine's place. All calls go on afterwards."""
        self.check_may_wait()
        self._refuse()
        with self._asking():
            with self._changed:  # here Ctrl-C ends the waiting; after acquire() it may come before a `try`
                while self._turn.locked():
                    self.check_others_may_work()
                    self._changed.wait()
            with self._turn:
                self._driving = threading.get_ident()
                try:
                    with self._in_order(), self._place(), device_lock(self.device):
                        yield
                finally:
                    self._driving = None

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Inside, a thread that drives stops after its step, and no other begins."""
        asks = object()
        try:
            with self._changed:
                self._asked.add(asks)
                self._changed.notify_all()
            yield
        finally:
            with self._changed:
                self._asked.discard(asks)
                self._changed.notify_all()

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Inside, nothing is being spoken: what has begun is ended first, later calls wait. Raises RuntimeError if a
        stream's listener, who may be this thread, takes nothing for PATIENCE seconds."""
        with self.between_steps():
            self.held = True
            try:
                self._end_what_has_begun()
                yield
            finally:
                self.held = False

    def wake(self) -> None:
        """Wakes waiting threads, because a listener has taken a chunk or a call was cancelled. A forked process has
        none, and there the lock may be held for ever."""
        if self._process != os.getpid():
            return
        with self._changed:
            self._changed.notify_all()

    def _refuse(self) -> None:
        if self._closed:
            raise RuntimeError("this model was closed; load it anew")
        self.check_process()

    def check_process(self) -> None:
        if self._process != os.getpid():
            raise RuntimeError(
                "this model was loaded before the process forked: threads and devices do not follow into the child; "
                "load it there, or start processes with the 'spawn' method"
            )

    def _end_what_has_begun(self) -> None:
        until = time.monotonic() + PATIENCE
        while self.busy():
            self._refuse()
            with self._failure_ends_all():
                worked = self.step()
            if worked:
                until = time.monotonic() + PATIENCE
            elif time.monotonic() > until:
                raise RuntimeError("a stream's listener takes no chunks: take them, or close the stream, before this")
            else:
                with self._changed:
                    self._changed.wait(LOOK)

    @contextmanager
    def _failure_ends_all(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.end_all(error)
            raise
        except BaseException:  # such as Ctrl-C in the middle of a step: for this thread alone, and no step goes on
            self.end_all(RuntimeError("the thread that computed for all calls was interrupted; call again"))
            raise

    def _place(self) -> AbstractContextManager:
        """Selects the engine's own modes and CUDA stream, whatever the caller's are: all its work is in one order."""
        stack = ExitStack()
        stack.enter_context(computing(self.device))
        if self._stream is not None:
            stack.enter_context(torch.cuda.device(self.device))
            stack.enter_context(torch.cuda.stream(self._stream))
        return stack

    @contextmanager
    def _in_order(self) -> Iterator[None]:
        """What the caller's CUDA stream has to do comes before what is done inside, and after it."""
        if self._stream is None:
            yield
            return
        callers = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(callers)
        yield
        callers.wait_stream(self._stream)
