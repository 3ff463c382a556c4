"""Who drives an engine: a caller that finds nobody driving does it for all until its own call is done, then another one
does. Only streams, whose listeners are busy listening, have a thread that does it when nobody else will.

So a plain script stays on one thread, where multiplying on a CPU is quickest (see openmp.py).
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress

import torch

from .openmp import dismiss_workers
from .request import Call

LOOK = 0.02  # s between two looks at `cancel` while all that is left to do waits for its listeners

_engines: weakref.WeakSet[Driver] = weakref.WeakSet()


class Driver:
    """`step()`, `check()`, `busy()` and `end_all()` are the engine's."""

    inbox: deque[Call]

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._turn = threading.Lock()  # who has it drives
        self._changed = threading.Condition()
        self._driving: int | None = None  # thread
        self._thread: threading.Thread | None = None
        self._unheard: set[Call] = set()  # calls that nobody waits in: the thread's
        self._closed, self._process = False, os.getpid()
        _engines.add(self)

    def step(self) -> bool:
        raise NotImplementedError

    def check(self, call: Call) -> None:
        raise NotImplementedError

    def busy(self) -> bool:
        raise NotImplementedError

    def end_all(self, error: BaseException) -> None:
        raise NotImplementedError

    # ---- for callers -------------------------------------------------------------------------------

    def run(self, call: Call) -> None:
        """Returns when the call is done; raises what ended it."""
        if self._driving == threading.get_ident():
            raise RuntimeError("a model was called from inside its own progress callback, which would wait for itself")
        self._submit(call)
        self._drive(lambda: call.done)
        if call.error is not None:
            raise call.error

    def start(self, call: Call) -> None:
        """Returns at once; `call.ended` tells of the end."""
        with self._changed:
            self._submit(call)
            self._unheard.add(call)
            if self._thread is None and not call.done:
                dismiss_workers()  # this thread's: it multiplies no more for now
                self._thread = threading.Thread(target=self._serve, name="chatterbox-engine", daemon=True)
                self._thread.start()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Within, nobody is being spoken, and nobody drives."""
        with self._turn, self._place():
            while self.busy():
                self.step()
            yield
        self.wake()

    def wait_for_end(self, call: Call) -> None:
        """Of one that was started."""
        if self._driving != threading.get_ident():
            with self._changed:
                self._changed.wait_for(lambda: call.done)

    def wake(self) -> None:
        """Something has changed: a listener has taken a chunk, a call was cancelled."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Ends every call, and the thread."""
        self._closed = True
        self.wake()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        if self._turn.acquire(blocking=False):
            try:
                self.end_all(RuntimeError("the model was closed"))
            finally:
                self._turn.release()

    # ---- driving -----------------------------------------------------------------------------------

    def _submit(self, call: Call) -> None:
        if self._closed:
            raise RuntimeError("this model was closed; load it anew")
        if self._process != os.getpid():
            raise RuntimeError(
                "this model was loaded before the process forked: threads and devices do not follow into the child; "
                "load it there, or start processes with the 'spawn' method"
            )
        self.check(call)
        call.submitted = time.perf_counter()
        if self._stream is not None:
            call.ready = torch.cuda.Event()
            call.ready.record(torch.cuda.current_stream(self.device))
        self.inbox.append(call)
        self.wake()

    def wait_for_inputs(self, call: Call) -> None:
        """The caller's stream has made them."""
        if call.ready is not None:
            self._stream.wait_event(call.ready)

    def ended(self, call: Call) -> None:
        """Called by the engine, once a call."""
        call.ended()
        with self._changed:
            self._unheard.discard(call)
            self._changed.notify_all()

    def _drive(self, done: Callable[[], bool]) -> None:
        while not done():
            if not self._turn.acquire(blocking=False):
                dismiss_workers()
                with self._changed:
                    self._changed.wait_for(lambda: done() or not self._turn.locked())
                continue
            self._driving = threading.get_ident()
            try:
                with self._place():
                    self._steps(done)
            except BaseException as error:  # as Ctrl-C in the middle of a step
                self.end_all(error)
                raise
            finally:
                self._driving = None
                self._turn.release()
                self.wake()
                dismiss_workers()  # another thread's, which may be next, would be slowed down by their waiting

    def _steps(self, done: Callable[[], bool]) -> None:
        while not done():
            if self._closed:
                self.end_all(RuntimeError("the model was closed"))
            elif not self.step() and not self.inbox:
                with self._changed:
                    self._changed.wait_for(lambda: done() or self.inbox or self._closed, timeout=LOOK)

    def _serve(self) -> None:
        while True:
            with suppress(BaseException):  # every call has been told
                self._drive(lambda: not self._unheard)
            with self._changed:
                if not self._unheard:
                    self._thread = None
                    return

    def _place(self) -> AbstractContextManager:
        """The engine's own CUDA stream, whatever the caller's is: all of its work is in one order."""
        stack = ExitStack()
        if self._stream is not None:
            stack.enter_context(torch.cuda.device(self.device))
            stack.enter_context(torch.cuda.stream(self._stream))
        return stack


@atexit.register
def _close_all() -> None:
    """A thread that Python leaves behind in the middle of an operation takes the process down with it."""
    for engine in list(_engines):
        engine.close()
