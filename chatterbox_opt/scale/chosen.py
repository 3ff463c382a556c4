"""A text spoken in several takes, with those methods of a SpeechStream that speaking.py calls."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

PLURALS = {"seed": "seeds", "language_id": "language_ids"}  # names of submit() -> names of jobs()
SPEAK_OPTIONS = ("max_chars", "n_cfm_timesteps", "takes", "retries", "score")  # of speak(); the others are of jobs()


class ChosenSpeech:
    """A thread of the pool makes it: the takes of a text can be compared only when all of them are there."""

    def __init__(self, pool: Executor, model: Any, text: str, voice: Any, options: dict[str, Any]) -> None:
        """`options`: those of model.submit(), and takes, retries and score. Raises ValueError if one is not allowed."""
        how = {name: options.pop(name) for name in SPEAK_OPTIONS if name in options}
        jobs = model.jobs([text], voices=voice, **{PLURALS.get(name, name): value for name, value in options.items()})
        self._cancelled, self._taken = threading.Event(), False
        self._future = pool.submit(model.speak, jobs, cancel=self._cancelled, **how)

    def notify(self, callback: Callable[[], None]) -> None:
        self._future.add_done_callback(lambda _: callback())

    def take(self) -> Any:
        """Returns the wave, (1, n), once, and raises StopIteration after that; None if it is not made yet. Raises the
        error that ended the speech."""
        if self._taken:
            raise StopIteration
        if not self._future.done():
            return None
        wav, self._taken = self._speech.wav, True
        if not wav.numel():
            raise ValueError("nothing is heard of it in any take; another seed or a longer text may help")
        return wav

    def cancel(self) -> None:
        self._cancelled.set()
        self._future.cancel()

    @property
    def _speech(self) -> Any:
        (speech,) = self._future.result()
        return speech

    @property
    def tokens(self) -> list[Any]:
        return self._speech.tokens

    @property
    def stops(self) -> list[str]:
        return self._speech.stops

    @property
    def seconds(self) -> dict[str, float]:
        return self._speech.seconds

    @property
    def kept(self) -> list[dict[str, int]]:
        """Returns, for each piece, the seed of the take that was kept and how often its takes were drawn."""
        return [{"seed": choice.seed, "tries": choice.tries} for choice in self._speech.choices]
