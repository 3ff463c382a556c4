"""Rows through engines of a Ray cluster, by Ray Data: what each becomes, as `speak` says it for one engine."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from ..text.pronounce import Pronunciations
from .cluster import Share, connected, live_nodes
from .rows import Row
from .speaking import Failed, Judge, Made, speak

AT_ONCE = 32  # rows of a task: twice what an engine speaks side by side


class Speaker:
    """An engine in a process of Ray's. Two tasks share it: while the last rows of one end, those of the next begin."""

    def __init__(
        self, load: Callable[[], Any], kind: str, judge: Judge | None, pronounce: Pronunciations | None,
        score: Callable[[Any], Any] | None,
    ) -> None:
        self.model, self.kind, self.judge, self.pronounce = load(), kind, judge, pronounce
        self.score = None if score is None else score(self.model)

    def __call__(self, table: Any) -> Iterator[Any]:
        """An outcome a row, in the rows' order: of a task that is begun again Ray skips as many as it had before."""
        import pyarrow as pa

        rows = [pickle.loads(data) for data in table["data"].to_pylist()]
        ready: dict[int, Made | Failed] = {}
        told = 0
        how: dict[str, Any] = {"judge": self.judge, "pronounce": self.pronounce, "score": self.score}
        for outcome in speak(self.model, rows, self.kind, **how):
            ready[outcome.row.number] = outcome
            while told < len(rows) and rows[told].number in ready:
                data = pickle.dumps(ready.pop(rows[told].number))
                told += 1
                yield pa.table({"data": pa.array([data], pa.large_binary())})


def speak_on_ray(
    load: Callable[[], Any], rows: Sequence[Row], kind: str, address: str, share: Callable[[list[Any]], Share],
    *, judge: Judge | None = None, pronounce: Pronunciations | None = None, score: Callable[[Any], Any] | None = None,
) -> Iterator[Made | Failed]:
    """`load` makes a model on the machine where it is called, from what is there; recordings are read there too, and
    `score` makes of the model what scores its takes. `share`: of nodes that have so much each."""
    with connected(address) as ray:
        left = {row.number: row for row in rows}
        try:
            for outcome in _outcomes((load, kind, judge, pronounce, score), rows, share(live_nodes())):
                if left.pop(outcome.row.number, None) is not None:
                    yield outcome
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            raise RuntimeError(f"Ray gave up: {cause}; the same command goes on") from error
        for row in left.values():
            yield Failed(row, "Ray lost it; the same command tries it again")


def _outcomes(speaker: tuple[Any, ...], rows: Sequence[Row], share: Share) -> Iterator[Made | Failed]:
    """`speaker`: what Speaker is made of."""
    import pyarrow as pa
    from ray import data

    context = data.DataContext.get_current().copy()
    context.enable_progress_bars = False  # there is one
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context.target_max_block_size = 1  # byte: an outcome is told as soon as it is there
    size = max(1, min(AT_ONCE, len(rows) // (2 * share.most)))  # so that the last engine has something to do as well
    blocks = [
        pa.table({"data": [pickle.dumps(row) for row in rows[start : start + size]]})
        for start in range(0, len(rows), size)
    ]
    with data.DataContext.current(context):
        spoken = data.from_arrow(blocks).map_batches(
            Speaker, fn_constructor_args=speaker, batch_size=size, batch_format="pyarrow",
            compute=data.ActorPoolStrategy(
                min_size=share.fewest, max_size=share.most, max_tasks_in_flight_per_actor=3,
                max_concurrent_calls_per_actor=2, enable_true_multi_threading=True,
            ),
            num_cpus=share.cpus, num_gpus=share.gpus,
        )
    for table in spoken.iter_batches(batch_size=None, batch_format="pyarrow"):
        for outcome in cast(Any, table)["data"].to_pylist():
            yield pickle.loads(outcome)
