"""CUDA graphs and torch.compile; no other file uses either, and mode None turns both off.

A `Captured` holds one function without arguments per key, which reads and writes tensors at fixed addresses.
With mode None it just calls the function, so the eager and the captured path are the same code.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ..options import EngineOptions
from .agreement import REPLAY_TOLERANCE, distance, tensors
from .recording import give_up_recording, nodes_recorded, own_stream, pool_bytes

logger = logging.getLogger(__name__)

# A process captures one graph at a time: each capture begins by synchronizing the device, which would break another's.
recording = threading.RLock()
MOST_KEYS = 256  # compiled variants of one function
WARM_UPS = 2  # runs before a capture: lazy initialisation and kernel compilation may not happen inside one
ROUNDS = 5  # of timing replay and eager run alternately
SLOWER = 1.1  # the fastest replay may take this times the eager median: the device may be shared


@dataclass(frozen=True)
class Trial:
    """Says that a capture is to be compared with the eager run before it is used."""

    name: str  # of options.CAPTURES
    dtype: torch.dtype  # of the computation


def on_trial(name: str, options: EngineOptions, dtype: str) -> Trial | None:
    return None if options.trial in ("off", "auto") else Trial(name, getattr(torch, dtype))


class NotTheSame(RuntimeError):
    """Raised when a replay's results differ from the eager run's, or it takes longer."""


class Captured:
    def __init__(
        self, mode: str | None, device: torch.device, stream: Any = None, trial: Trial | None = None,
        kept: Callable[[Any], Any] = lambda result: result,
    ) -> None:  # fmt: skip
        """`kept` selects the part of a result that callers use; the rest is for comparison, and freed after the trial.
        Without a trial an error during capture is raised."""
        self.mode, self.device, self.trial, self.kept = mode, device, trial, kept
        self.closed: str | None = None  # why nothing more is captured
        self.refused: set[Hashable] = set()  # keys for which memory ran out
        self.seconds: tuple[float, float] | None = None  # of the first replay, and of the eager run
        self.nodes: dict[Hashable, int | None] = {}  # per graph, if captured while this logger is at debug
        self._graphs: dict[Hashable, Any] = {}
        self._results: dict[Hashable, Any] = {}
        self._pool: Any = None
        self._stream = stream

    @property
    def on(self) -> bool:
        return self.mode is not None

    @property
    def keys(self) -> list[Hashable]:
        return list(self._graphs)

    @property
    def pool_bytes(self) -> int | None:
        """Memory of the graphs on the device; None if unknown."""
        return None if self._pool is None else pool_bytes(self._pool)

    def ready(self, key: Hashable) -> bool:
        return self.mode is None or key in self._graphs

    def prepare(
        self, key: Hashable, run: Callable[[], Any], moving: Sequence[Tensor] = (), spoil: Callable = lambda: None
    ) -> bool:
        """Captures `run` under `key` and returns whether it is captured; if not, run() calls it eagerly. `moving` are
        the tensors that a run both reads and changes; they are restored. Everything else a run writes must be free to
        overwrite, and `spoil` overwrites it, so that the trial notices a replay that does not write it."""
        if self.ready(key) or self._refuses(key):
            return self.ready(key)
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext(), recording:
            before = [tensor.clone() for tensor in moving]

            def again(play: Callable[[], Any] = run) -> Any:
                put_back(moving, before)
                return play()

            try:
                if self.mode == "reduce-overhead":
                    again()  # tables made at first use must exist before compilation
                    self._record(key, compiled(run), again)
                else:
                    self._record(key, run, again)
                if self.trial is not None:
                    self._try(key, again, moving, spoil)
                if key in self._results:
                    self._results[key] = self.kept(self._results[key])
            except BaseException as problem:
                self._give_up(key)
                if self.trial is None or not isinstance(problem, Exception):
                    raise
                self._close(key, problem)
            finally:
                put_back(moving, before)
        return self.ready(key)

    @contextmanager
    def within_memory(self, key: Hashable) -> Iterator[None]:
        """For what is allocated beside a capture: out of memory inside is out of memory while capturing `key`."""
        try:
            yield
        except torch.OutOfMemoryError as problem:
            if self.trial is None:
                raise
            self._close(key, problem)

    def run(self, key: Hashable, run: Callable[[], Any]) -> Any:
        """Returns what `run` returns. A captured result lies in memory that all graphs share, and is overwritten by the
        next replay of any of them: use it before, or let `run` copy it to a tensor from elsewhere."""
        if key in self._graphs:
            result = self._replay(key)
            return result if key in self._results else self.kept(result)
        if self.on and not self._refuses(key):
            raise RuntimeError(f"{key} was not captured ahead of its use; captured are {self.keys}")
        return self.kept(run())

    def forget(self) -> None:
        """Drops every capture, as is needed when the memory they read has moved."""
        with recording:
            if self._graphs and self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # a block that was begun ahead may still be running
            for kept in (self._graphs, self._results, self.nodes):
                kept.clear()
            self._pool = self._stream = None  # the stream's cuBLAS workspace lies in the pool

    def _refuses(self, key: Hashable) -> bool:
        return self.closed is not None or key in self.refused

    # ---- recording ---------------------------------------------------------------------------------

    def _record(self, key: Hashable, run: Callable[[], Any], again: Callable[..., Any]) -> None:
        if self.device.type != "cuda":  # no graphs there: keep the compiled function
            again(run)
            self._graphs[key] = run
            return
        # One side stream for all captures: torch's own belongs to the first device that captured. Nothing runs eagerly
        # on it, so cuBLAS allocates its workspace during a capture, in the graphs' pool, where it lives as long as they
        # do even if torch gives it up, as torch 2.14 does whenever one of the graphs goes.
        self._stream = self._stream or own_stream(self.device)
        for _ in range(WARM_UPS):
            again(run)
        graph = self._graphs[key] = torch.cuda.CUDAGraph()
        # prepare the largest first: the others fit into its memory
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        # The outer stream context: torch's own does not leave the stream when a capture fails.
        # thread_local: allocations and launches of other threads do not break the capture
        how = dict(stream=self._stream, capture_error_mode="thread_local")
        with torch.cuda.stream(self._stream), torch.cuda.graph(graph, self._pool, **how):
            self._results[key] = run()
            if logger.isEnabledFor(logging.DEBUG):
                self.nodes[key] = nodes_recorded(self._stream)
        logger.debug("captured %s, %s nodes", key, self.nodes.get(key))

    def _replay(self, key: Hashable) -> Any:
        if self.device.type != "cuda":
            return self._graphs[key]()
        self._graphs[key].replay()
        return self._results[key]

    def _give_up(self, key: Hashable) -> None:
        graph, *_ = [kept.pop(key, None) for kept in (self._graphs, self._results, self.nodes)]
        if self.device.type == "cuda" and graph is not None:
            with suppress(RuntimeError):  # kernels already launched may still write
                torch.cuda.synchronize()
            give_up_recording(self.device, graph, self._pool)

    # ---- on trial ----------------------------------------------------------------------------------

    def _try(
        self, key: Hashable, again: Callable[..., Any], moving: Sequence[Tensor], spoil: Callable[[], None]
    ) -> None:
        replay = partial(self._replay, key)
        wanted = [t.clone() for t in tensors(again(), moving)]
        again(spoil)
        got = tensors(again(replay), moving)
        error, allowed = distance(got, wanted), REPLAY_TOLERANCE[self.trial.dtype]
        if not error <= allowed:
            raise NotTheSame(f"a replay differs by {error:.2g}, {allowed:.2g} is allowed")
        if self.seconds is None:  # only the first capture is timed: a warm-up has dozens
            rounds = [(self._seconds(lambda: again(replay)), self._seconds(again)) for _ in range(ROUNDS)]
            self.seconds = own, plain = min(own for own, _ in rounds), median(plain for _, plain in rounds)
            if own > SLOWER * plain:
                raise NotTheSame(f"a replay takes {1e3 * own:.2f} ms, its twin {1e3 * plain:.2f} ms")

    def _seconds(self, run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        run()
        if self.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        return time.perf_counter() - start

    def _close(self, key: Hashable, problem: Exception) -> None:
        """Keeps what is captured; from now on other keys run eagerly, or after a lack of memory this key alone."""
        if isinstance(problem, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
            text = "out of memory while capturing the %s at %s: what finds no room runs uncaptured"
            logger.log(logging.DEBUG if self.refused else logging.WARNING, text, self.trial.name, key)
            self.refused.add(key)
            return
        reason = str(problem).strip().split("\n")[0][:200]
        self.closed = reason if isinstance(problem, NotTheSame) else f"{type(problem).__name__}: {reason}"
        text = "capturing the %s at %s was given up, it runs uncaptured: %s"
        logger.warning(text, self.trial.name, key, self.closed)


def put_back(moving: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    for tensor, kept in zip(moving, before):
        tensor.copy_(kept)


def bucket(rows: int) -> int:
    """Returns the captured batch size for `rows`: the next power of two."""
    return 1 << (rows - 1).bit_length()


def compiled(run: Callable[[], Any]) -> Callable[[], Any]:
    """Returns `run` compiled by torch.compile without its graph trees, which belong to the thread that made them while
    requests come from any thread. "reduce-overhead" captures these kernels in a graph of ours."""

    def call() -> Any:
        # Every key compiles the same code again; torch allows eight by default and then silently runs eagerly.
        with torch._dynamo.config.patch(cache_size_limit=MOST_KEYS, accumulated_cache_size_limit=8 * MOST_KEYS):
            return fused()

    fused = torch.compile(run, dynamic=False)
    return call
