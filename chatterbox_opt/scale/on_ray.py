"""Speaks rows with the engines of a Ray cluster. Ray Data distributes tasks of many rows. If an engine's process ended
twice with the same task, the rows that it lost are spoken one by one, which tells the row that ends it from the others.
"""

from __future__ import annotations

import logging
import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

from ..text.pronounce import Pronunciations
from .cluster import Share, connected, live_nodes
from .rows import Row
from .speaking import Failed, Judge, Made, one_line, speak
from .watch import PATIENCE, Watch, progress

AT_ONCE = 32  # rows of a task: twice the slots of an engine
RETRIES = 1  # of a task, or of a row alone, whose engine's process ended
LOST = pickle.dumps(None)  # in the place of an outcome
LONGEST_REASON = 600  # characters


class Ledger:
    """Counts how often each task was begun. It is a process of its own: those of engines may end at any time, and Ray
    Data itself repeats a task without limit."""

    def __init__(self) -> None:
        self.begun: Counter[int] = Counter()

    def begin(self, task: int) -> int:
        self.begun[task] += 1
        return self.begun[task]


class Speaker:
    """A Ray actor with an engine. It has two tasks at once: as the last rows of one end, the other fills the slots."""

    def __init__(
        self, load: Callable[[], Any], kind: str, judge: Judge | None, pronounce: Pronunciations | None,
        score: Callable[[Any], Any] | None, patience: float, ledger: Any,
    ) -> None:
        self.model, self.kind, self.judge, self.pronounce = load(), kind, judge, pronounce
        self.score = None if score is None else score(self.model)
        self.ledger = ledger
        self.watch = Watch(partial(progress, self.model), patience)

    def __call__(self, table: Any) -> Iterator[Any]:
        """Yields an outcome per row, in the order of the rows: if a task is repeated, Ray skips as many outcomes as it
        got before."""
        import pyarrow as pa

        for outcome in self._in_order([pickle.loads(data) for data in table["data"].to_pylist()]):
            yield pa.table({"data": pa.array([outcome], pa.large_binary())})

    def _in_order(self, rows: list[Row]) -> Iterator[bytes]:
        import ray

        if ray.get(self.ledger.begin.remote(rows[0].number)) > 1 + RETRIES:
            yield from [LOST] * len(rows)
            return
        ready: dict[int, Made | Failed] = {}
        yielded = 0
        for outcome in self._speak(rows):
            ready[outcome.row.number] = outcome
            while yielded < len(rows) and rows[yielded].number in ready:
                yield pickle.dumps(ready.pop(rows[yielded].number))
                yielded += 1

    def alone(self, data: bytes) -> bytes:
        (outcome,) = self._speak([pickle.loads(data)])
        return pickle.dumps(outcome)

    def _speak(self, rows: Sequence[Row]) -> Iterator[Made | Failed]:
        how: dict[str, Any] = {"judge": self.judge, "pronounce": self.pronounce, "score": self.score}
        outcomes = speak(self.model, rows, self.kind, **how)
        for _ in rows:
            with self.watch.waiting():
                outcome = next(outcomes)
            yield outcome


def speak_on_ray(
    load: Callable[[], Any], rows: Sequence[Row], kind: str, address: str, share: Callable[[list[Any]], Share],
    *, judge: Judge | None = None, pronounce: Pronunciations | None = None, score: Callable[[Any], Any] | None = None,
    patience: float = PATIENCE,
) -> Iterator[Made | Failed]:
    """Yields the outcome of each row, as speak() does. `load` is called in each engine's process and returns its model;
    it and the recordings are read on the engine's machine. `score`: called with the model, returns what scores its
    takes. `share`: called with the resources of each node. An engine that made no progress for `patience` seconds,
    though it has rows, has its process ended."""
    with connected(address) as ray:
        left = {row.number: row for row in rows}
        chosen = share(live_nodes())
        ledger = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Ledger).remote()
        speaker = load, kind, judge, pronounce, score, patience, ledger
        try:
            for outcome in _side_by_side(speaker, rows, chosen):
                if left.pop(outcome.row.number, None) is not None:
                    yield outcome
            yield from _one_by_one(ray, speaker, list(left.values()), chosen)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            raise RuntimeError(f"Ray gave up: {cause}; the same command continues the run") from error


def _side_by_side(speaker: tuple[Any, ...], rows: Sequence[Row], share: Share) -> Iterator[Made | Failed]:
    """`speaker`: the arguments of Speaker. Rows that were lost twice have no outcome."""
    import pyarrow as pa
    from ray import data as ray_data

    context = ray_data.DataContext.get_current().copy()
    context.enable_progress_bars = False  # batch.py shows one
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context.target_max_block_size = 1  # byte: each outcome is a block, which Ray delivers at once
    size = max(1, min(AT_ONCE, len(rows) // (2 * share.most)))  # so that every engine gets two tasks
    blocks = [
        pa.table({"data": [pickle.dumps(row) for row in rows[start : start + size]]})
        for start in range(0, len(rows), size)
    ]
    with ray_data.DataContext.current(context):
        outcomes = ray_data.from_arrow(blocks).map_batches(
            Speaker, fn_constructor_args=speaker, batch_size=size, batch_format="pyarrow",
            compute=ray_data.ActorPoolStrategy(
                min_size=share.fewest, max_size=share.most, max_tasks_in_flight_per_actor=3,
                max_concurrent_calls_per_actor=2, enable_true_multi_threading=True,
            ),
            num_cpus=share.cpus, num_gpus=share.gpus,
        )
    for table in outcomes.iter_batches(batch_size=None, batch_format="pyarrow"):
        for data in cast(Any, table)["data"].to_pylist():
            if data != LOST:
                yield pickle.loads(data)


def _one_by_one(ray: Any, speaker: tuple[Any, ...], rows: Sequence[Row], share: Share) -> Iterator[Made | Failed]:
    """Each row has an engine to itself while it is spoken."""
    alone = {"max_restarts": -1, "max_task_retries": RETRIES, "num_cpus": share.cpus, "num_gpus": share.gpus}
    new = ray.remote(**alone)(Speaker).remote
    free, waiting = [new(*speaker) for _ in rows[: share.fewest]], list(reversed(rows))
    going: dict[Any, tuple[Any, Row]] = {}  # task -> its engine and its row
    try:
        while waiting or going:
            while free and waiting:
                engine, row = free.pop(), waiting.pop()
                going[engine.alone.remote(pickle.dumps(row))] = engine, row
            (done,), _ = ray.wait(list(going))
            engine, row = going.pop(done)
            try:
                outcome = pickle.loads(ray.get(done))
            except ray.exceptions.RayError as error:
                why = f"Ray's logs say more: {one_line(error)[:LONGEST_REASON]}"
                outcome = Failed(row, f"its engine's process ended, when it was spoken alone too; {why}")
                if isinstance(error, ray.exceptions.ActorDiedError):  # Ray does not restart it
                    engine = new(*speaker)
            free.append(engine)
            yield outcome
    finally:
        for engine in (*free, *(engine for engine, _ in going.values())):
            ray.kill(engine)
