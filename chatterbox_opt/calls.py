"""The options of a call that concern no single text, validated once and passed on as one object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from .checks import check_steps, check_watchers
from .scores import Take
from .takes import Takes, asked_for
from .text.split import check_max_chars

MAX_CHARS = 280  # a longer text is spoken in pieces: the models drift past some 25 s


@dataclass(frozen=True)
class GenerateOptions:
    """The options of one call that concern no single text."""

    n_cfm_timesteps: int | None = None  # Euler steps of the flow; None = the decoder's own number
    max_chars: int | None = MAX_CHARS  # of a piece; None = a text in one go
    verbose: bool = False  # a progress bar on stderr
    cancel: Any = None  # an object with is_set(), such as threading.Event
    progress: Callable[[int, int], None] | None = None  # called with (speech tokens drawn, the most there can be)
    takes: int = 1  # drawn of each piece; the one with the highest score is kept
    score: Callable[[Take], float] | None = None  # see scores.py; None = PlausibleLength()
    retries: int = 0  # how often a piece that went wrong is drawn again

    def __post_init__(self) -> None:
        check_steps(self.n_cfm_timesteps)
        check_watchers(self.cancel, self.progress)
        if self.max_chars is not None:
            check_max_chars(self.max_chars)
        _ = self.selection  # raises ValueError where takes, score and retries do not fit together

    @cached_property
    def selection(self) -> Takes | None:
        """None for a single take."""
        return asked_for(self.takes, self.score, self.retries)

    @classmethod
    def separate(cls, keywords: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns (the keywords that are fields of this class, the others)."""
        names = {f.name for f in fields(cls)}
        own = {name: value for name, value in keywords.items() if name in names}
        return own, {name: value for name, value in keywords.items() if name not in names}
