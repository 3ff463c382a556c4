"""The progress bar of a call with verbose=True."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Report = Callable[[int, int], None]  # called with (tokens drawn, most there can be)


class ProgressBar:
    """A tqdm bar on stderr, from the first report on; `further` is called too. Its total is the limit: most texts end
    long before it."""

    def __init__(self, further: Callable[[int, int], None] | None = None) -> None:
        self.bar: Any = None
        self.further = further

    def __call__(self, done: int, ceiling: int) -> None:
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(desc="speech tokens (of at most)", unit="tok", dynamic_ncols=True, disable=False)
        self.bar.total = ceiling
        self.bar.update(done - self.bar.n)
        if self.further is not None:
            self.further(done, ceiling)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


@contextmanager
def progress_bar(verbose: bool, further: Callable[[int, int], None] | None = None) -> Iterator[Report | None]:
    if not verbose:
        yield further
        return
    bar = ProgressBar(further)
    try:
        yield bar
    finally:
        bar.close()
