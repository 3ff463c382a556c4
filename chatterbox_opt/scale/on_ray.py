"""Rows through engines of a Ray cluster: what each becomes, as `speak` says it for one engine. Ray Data has them
spoken many at a time; rows that were lost with an engine's process twice are spoken alone, which tells the one that
ends it from those that were beside it."""

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
from .speaking import Failed, Judge, Made, said, speak
from .watch import PATIENCE, Watch, progress

AT_ONCE = 32  # rows of a task: twice what an engine speaks side by side
RETRIES = 1  # of a task, and of a row alone, whose engine's process has ended
LOST = pickle.dumps(None)  # stands for an outcome
LONGEST_REASON = 600  # characters


class Ledger:
    """How often each task was begun. In a process of its own: those that begin them may end at any time, and what Ray
    Data has retried it retries for ever."""

    def __init__(self) -> None:
        self.begun: Counter[int] = Counter()

    def begin(self, task: int) -> int:
        self.begun[task] += 1
        return self.begun[task]


class Speaker:
    """An engine in a process of Ray's. Two tasks share it: while the last rows of one end, those of the next begin."""

    def __init__(
        self, load: Callable[[], Any], kind: str, judge: Judge | None, pronounce: Pronunciations | None,
        score: Callable[[Any], Any] | None, patience: float, ledger: Any,
    ) -> None:
        self.model, self.kind, self.judge, self.pronounce = load(), kind, judge, pronounce
        self.score = None if score is None else score(self.model)
        self.ledger = ledger
        self.watch = Watch(partial(progress, self.model), patience)

    def __call__(self, table: Any) -> Iterator[Any]:
        """An outcome a row, in the rows' order: of a task that is begun again Ray skips as many as it had before."""
        import pyarrow as pa

        for outcome in self._in_order([pickle.loads(data) for data in table["data"].to_pylist()]):
            yield pa.table({"data": pa.array([outcome], pa.large_binary())})

    def _in_order(self, rows: list[Row]) -> Iterator[bytes]:
        import ray

        if ray.get(self.ledger.begin.remote(rows[0].number)) > 1 + RETRIES:
            yield from [LOST] * len(rows)
            return
        ready: dict[int, Made | Failed] = {}
        told = 0
        for outcome in self._speak(rows):
            ready[outcome.row.number] = outcome
            while told < len(rows) and rows[told].number in ready:
                yield pickle.dumps(ready.pop(rows[told].number))
                told += 1

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
    """`load` makes a model on the machine where it is called, from what is there; recordings are read there too, and
    `score` makes of the model what scores its takes. `share`: of nodes that have so much each. The process of an
    engine that has done nothing for `patience` seconds, though it has rows, is ended."""
    with connected(address) as ray:
        left = {row.number: row for row in rows}
        each = share(live_nodes())
        ledger = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Ledger).remote()
        speaker = load, kind, judge, pronounce, score, patience, ledger
        try:
            for outcome in _side_by_side(speaker, rows, each):
                if left.pop(outcome.row.number, None) is not None:
                    yield outcome
            yield from _one_by_one(ray, speaker, list(left.values()), each)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            raise RuntimeError(f"Ray gave up: {cause}; the same command goes on") from error


def _side_by_side(speaker: tuple[Any, ...], rows: Sequence[Row], share: Share) -> Iterator[Made | Failed]:
    """`speaker`: what Speaker is made of. Rows of a task that was lost too often are left out, but for those that came
    before."""
    import pyarrow as pa
    from ray import data as ray_data

    context = ray_data.DataContext.get_current().copy()
    context.enable_progress_bars = False  # there is one
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context.target_max_block_size = 1  # byte: an outcome is told as soon as it is there
    size = max(1, min(AT_ONCE, len(rows) // (2 * share.most)))  # so that the last engine has something to do as well
    blocks = [
        pa.table({"data": [pickle.dumps(row) for row in rows[start : start + size]]})
        for start in range(0, len(rows), size)
    ]
    with ray_data.DataContext.current(context):
        spoken = ray_data.from_arrow(blocks).map_batches(
            Speaker, fn_constructor_args=speaker, batch_size=size, batch_format="pyarrow",
            compute=ray_data.ActorPoolStrategy(
                min_size=share.fewest, max_size=share.most, max_tasks_in_flight_per_actor=3,
                max_concurrent_calls_per_actor=2, enable_true_multi_threading=True,
            ),
            num_cpus=share.cpus, num_gpus=share.gpus,
        )
    for table in spoken.iter_batches(batch_size=None, batch_format="pyarrow"):
        for data in cast(Any, table)["data"].to_pylist():
            if data != LOST:
                yield pickle.loads(data)


def _one_by_one(ray: Any, speaker: tuple[Any, ...], rows: Sequence[Row], share: Share) -> Iterator[Made | Failed]:
    """Each with an engine to itself, as long as it is spoken."""
    alone = {"max_restarts": -1, "max_task_retries": RETRIES, "num_cpus": share.cpus, "num_gpus": share.gpus}
    new = ray.remote(**alone)(Speaker).remote
    free, waiting = [new(*speaker) for _ in rows[: share.fewest]], list(reversed(rows))
    going: dict[Any, tuple[Any, Row]] = {}
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
                why = f"Ray's logs say more: {said(error)[:LONGEST_REASON]}"
                outcome = Failed(row, f"its engine's process ended, when it was spoken alone too; {why}")
                if isinstance(error, ray.exceptions.ActorDiedError):  # for good
                    engine = new(*speaker)
            free.append(engine)
            yield outcome
    finally:
        for engine in (*free, *(engine for engine, _ in going.values())):
            ray.kill(engine)
