"""Which thread runs the engine's steps.

A caller that finds no thread driving runs the steps for all calls until its own is done; then another caller takes
over. Streams, whose callers do not wait inside the engine, have a background thread for when no caller drives. So a
plain script stays on one thread, where products on a CPU are fastest (see openmp.py).
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import torch

from ..device_lock import device_lock, holds_device
from ..openmp import dismiss_workers
from .place import LOOK, Place
from .request import Call

logger = logging.getLogger(__name__)

# s that close() waits for a step that has begun. A program that ends while one takes longer, as a first one that
# compiles may, leaves its thread in the middle of it.
LAST_STEP = 30.0
NOBODY_WAITS = threading.Event()  # the `cancel` of a call whose caller has been interrupted
NOBODY_WAITS.set()

_engines: weakref.WeakSet[Driver] = weakref.WeakSet()
_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()  # a dropped model's may still be freeing its memory


class Driver(Place):
    """Base class of the engine, which implements `check()` and the methods that Place needs."""

    inbox: deque[Call]

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._thread: threading.Thread | None = None
        self._started: set[Call] = set()  # started calls, in which no caller waits
        _engines.add(self)

    def check(self, call: Call) -> None:
        raise NotImplementedError

    # ---- for callers -------------------------------------------------------------------------------

    def run(self, call: Call) -> None:
        """Returns when the call is done; raises what ended it."""
        self.check_may_wait()
        self._submit(call)
        try:
            self._drive(lambda: call.done)
        except BaseException:  # such as Ctrl-C while another thread drives
            call.cancel = NOBODY_WAITS
            raise
        try:
            if call.error is not None:
                raise call.error
        finally:  # the error refers to this frame, and the frame to the call: a cycle would keep its tensors alive
            call.error = None

    def start(self, call: Call) -> None:
        """Submits the call and returns at once; `call.ended` is called at its end."""
        try:
            self._refuse()  # before the lock, which in a forked process may be held for ever
        except BaseException:
            call.give_back_noise()
            raise
        with self._changed:
            self._submit(call)
            self._started.add(call)
            if self._thread is None and not call.done:
                dismiss_workers()  # of this thread, which computes nothing for now
                thread = threading.Thread(target=self._serve, name="chatterbox-engine", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the process may have no more threads
                    self._withdraw(call)
                    raise
                self._thread = thread
                _threads.add(thread)

    def wait_for_end(self, call: Call) -> None:
        """Returns when a call given to start() is done, and has told so. In a forked process it will not be."""
        if not self.inside():
            with self._changed:
                self._changed.wait_for(lambda: call not in self._started)

    def inside(self) -> bool:
        """Whether no other thread may be waited for: inside a step, of another model too if one thread at a time uses
        the device, and in a forked process, which has no others."""
        if self._process != os.getpid() or holds_device(self.device):
            return True
        return self._driving == threading.get_ident()

    def close(self) -> None:
        """Ends every call and the background thread. A forked process has neither, nor threads for its operations. From
        inside a step (a callback, a signal's handler) they end after it."""
        self._closed = True
        if self.inside():
            return
        self.wake()
        until, thread = time.monotonic() + LAST_STEP, self._thread
        if thread is not None:
            thread.join(LAST_STEP)
        if self._turn.acquire(timeout=max(0.0, until - time.monotonic())):  # of a caller, who then ends all calls
            try:
                self._driving = threading.get_ident()
                self.end_all(RuntimeError("the model was closed"))
            finally:
                self._driving = None
                self._turn.release()
                self.wake()  # who has submitted a call meanwhile

    # ---- driving -----------------------------------------------------------------------------------

    def _submit(self, call: Call) -> None:
        try:
            self._refuse()
            self.check(call)
        except BaseException:
            call.give_back_noise()
            raise
        call.submitted = time.perf_counter()
        if self._stream is not None:
            call.ready = torch.cuda.Event()
            call.ready.record(torch.cuda.current_stream(self.device))
        self.inbox.append(call)
        self.wake()

    def _withdraw(self, call: Call) -> None:
        self._started.discard(call)
        call.cancel = NOBODY_WAITS  # if a thread that drives has taken it already
        with suppress(ValueError):
            self.inbox.remove(call)
            call.give_back_noise()

    def wait_for_inputs(self, call: Call) -> None:
        """Makes the engine's CUDA stream wait until the caller's stream has computed the call's tensors."""
        if call.ready is not None:
            self._stream.wait_event(call.ready)

    def ended(self, call: Call, spoken: bool) -> None:
        """Called by the engine once per call. `spoken`: without an error."""
        try:
            call.ended(spoken)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # of the caller's notify(), such as a closed event loop's; no other call may suffer
            logger.warning("the end of a speech could not be told", exc_info=True)
        finally:
            call.let_go()
            with self._changed:
                self._started.discard(call)
                self._changed.notify_all()

    def _drive(self, done: Callable[[], bool]) -> None:
        while not done():
            if self._asked or not self._turn.acquire(blocking=False):
                self.check_others_may_work()
                dismiss_workers()
                with self._changed:
                    self._changed.wait_for(lambda: done() or not (self._asked or self._turn.locked()))
                continue
            self._driving = threading.get_ident()
            try:
                with self._failure_ends_all(), self._place():
                    self._steps(lambda: done() or bool(self._asked))
            finally:
                self._driving = None
                self._turn.release()
                self.wake()

    def _steps(self, done: Callable[[], bool]) -> None:
        while not done():
            if self._closed:
                self.end_all(RuntimeError("the model was closed"))
                continue
            with device_lock(self.device):
                worked = self.step()
            if not worked and not self.inbox:
                with self._changed:
                    self._changed.wait_for(lambda: done() or self.inbox or self._closed, timeout=LOOK)

    def _serve(self) -> None:
        while True:
            with suppress(BaseException):  # every call already has the error
                self._drive(lambda: not self._started)
            with self._changed:
                if not self._started:
                    self._thread = None
                    return


@atexit.register
def _close_all() -> None:
    """Stops all threads at exit: one that Python leaves in the middle of an operation crashes the process."""
    until = time.monotonic() + LAST_STEP
    for engine in list(_engines):
        engine.close()
    for thread in list(_threads):
        thread.join(max(0.0, until - time.monotonic()))
