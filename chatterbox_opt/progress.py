"""The progress bar of a call with verbose=True."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Report = Callable[[int, int], None]  # called with (tokens drawn, most there can be)


class ProgressBar:
    """A tqdm bar on stderr, from the first report on; `further` is called too. It counts tokens without a total: the
    only one that is known, the limit, is far more than most texts take."""

    def __init__(self, further: Callable[[int, int], None] | None = None) -> None:
        self.bar: Any = None
        self.further = further

    def __call__(self, done: int, ceiling: int) -> None:
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(desc="speech tokens", unit="tok", dynamic_ncols=True, disable=False)
        self.bar.update(done - self.bar.n)
        if self.further is not None:
            self.further(done, ceiling)

    def close(self, spoken: bool) -> None:
        """`spoken`: the speech is there, so what was drawn is all of it."""
        if self.bar is not None:
            self.bar.total = self.bar.n if spoken else None
            self.bar.close()


@contextmanager
def progress_bar(verbose: bool, further: Callable[[int, int], None] | None = None) -> Iterator[Report | None]:
    if not verbose:
        yield further
        return
    bar = ProgressBar(further)
    try:
        yield bar
    except BaseException:
        bar.close(spoken=False)
        raise
    bar.close(spoken=True)
