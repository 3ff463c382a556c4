"""A row spoken in several takes, with the calls that a desk makes of a stream."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

PLURALS = {"seed": "seeds", "language_id": "language_ids"}  # submit()'s names -> those of jobs()
SPEAKING = ("max_chars", "n_cfm_timesteps", "takes", "retries", "score")  # of speak()


class ChosenSpeech:
    """Made by a thread of the pool: the takes of a text are compared when all of them are there."""

    def __init__(self, pool: Executor, model: Any, text: str, voice: Any, options: dict[str, Any]) -> None:
        """`options` are those of model.submit(), and takes, retries and score. Raises where they cannot be."""
        how = {name: options.pop(name) for name in SPEAKING if name in options}
        jobs = model.jobs([text], voices=voice, **{PLURALS.get(name, name): value for name, value in options.items()})
        self._cancelled, self._taken = threading.Event(), False
        self._speech = pool.submit(model.speak, jobs, cancel=self._cancelled, **how)

    def notify(self, callback: Callable[[], None]) -> None:
        self._speech.add_done_callback(lambda _: callback())

    def take(self) -> Any:
        """(1, N) once, then StopIteration; None where it is not there yet. Raises what ended it."""
        if self._taken:
            raise StopIteration
        if not self._speech.done():
            return None
        wav, self._taken = self._made.wav, True
        if not wav.numel():
            raise ValueError("nothing is heard of it in any take; another seed or a longer text may help")
        return wav

    def cancel(self) -> None:
        self._cancelled.set()
        self._speech.cancel()

    @property
    def _made(self) -> Any:
        (speech,) = self._speech.result()
        return speech

    @property
    def tokens(self) -> list[Any]:
        return self._made.tokens

    @property
    def stops(self) -> list[str]:
        return self._made.stops

    @property
    def seconds(self) -> dict[str, float]:
        return self._made.seconds

    @property
    def kept(self) -> list[dict[str, int]]:
        """Of each piece: which seed says it, and how often its takes were drawn."""
        return [{"seed": choice.seed, "tries": choice.tries} for choice in self._made.choices]
