"""A client that reads nothing holds nobody up for long."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def in_time(work: Coroutine[Any, Any, Any], seconds: float) -> Any:
    """What `work` returns; raises asyncio.TimeoutError where it takes longer. Not asyncio.wait_for(): up to Python 3.11
    it forgets that it was cancelled if that happens as the work ends, and a speech went on for a client that had left.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            raise asyncio.TimeoutError
        return task.result()
    finally:
        task.cancel()
