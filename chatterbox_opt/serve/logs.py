"""uvicorn's log lines, written by a thread: a disk that is busy, or a terminal that was stopped, holds up whoever
writes to it, and in the event loop that would be every stream."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from logging.handlers import QueueHandler, QueueListener
from queue import SimpleQueue

LOGGERS = ("uvicorn", "uvicorn.access")  # which have handlers


class _Handed(QueueHandler):
    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record  # as it is: uvicorn's formatter of accesses reads its arguments


@contextmanager
def written_aside() -> Iterator[None]:
    with ExitStack() as stack:
        for name in LOGGERS:
            stack.enter_context(_aside(logging.getLogger(name)))
        yield


@contextmanager
def _aside(logger: logging.Logger) -> Iterator[None]:
    handlers = logger.handlers
    lines: SimpleQueue = SimpleQueue()
    writer = QueueListener(lines, *handlers, respect_handler_level=True)
    logger.handlers = [_Handed(lines)]
    writer.start()
    try:
        yield
    finally:
        logger.handlers = handlers
        writer.stop()  # when all is written
