"""Captured execution without a GPU."""


class Replay:
    """Stands in for engine.graphs.Captured: runs what would be recorded, in the memory it would be recorded with, and
    refuses what was not prepared."""

    on = True

    def __init__(self) -> None:
        self.recorded: dict = {}

    @property
    def keys(self) -> list:
        return list(self.recorded)

    def prepare(self, key, run) -> None:
        if key not in self.recorded:
            run()  # as a warm-up does
            self.recorded[key] = run

    def run(self, key, run):
        return self.recorded[key]()

    def forget(self) -> None:
        self.recorded.clear()
