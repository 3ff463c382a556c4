"""A queueing model of replicas: the speeches in a replica's slots share its rate, and others wait for a slot."""

from __future__ import annotations

import heapq
import random
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

ByNumber = Callable[[int], float]  # a value by the number of speeches that a replica has in its slots
LEAST_SHARE = 0.1  # of an equal share of the rate: what a speech that is being heard keeps


@dataclass
class Speech:
    arrived: float  # s
    seconds: float  # of sound
    heard: float = float("nan")  # s, time of its first sound
    ended: float = float("nan")  # s
    refused: bool = False


@dataclass
class Replica:
    rate: ByNumber  # seconds of sound that it makes in a second, of all speeches together
    slots: int  # speeches side by side
    first: float  # seconds of sound that are made before a speech is heard
    first_delay: ByNumber | None  # seconds in which they are made; None: all speeches share the rate equally
    live: list[tuple[float, Speech]] = field(default_factory=list)  # (seconds of sound still to make, speech)
    waiting: deque[Speech] = field(default_factory=deque)
    now: float = 0.0  # s
    version: int = 0  # of its state: an event that was planned in an earlier one does not happen

    def load(self) -> int:
        return len(self.live) + len(self.waiting)

    def advance(self, now: float) -> None:
        """Makes sound up to `now`, which is not after its next event."""
        if self.live:
            new, old = self.paces()
            passed = now - self.now
            self.live = [(left - passed * (old if heard(speech) else new), speech) for left, speech in self.live]
        self.now = now

    def paces(self) -> tuple[float, float]:
        """Returns seconds of sound made in a second, of a speech that is not heard yet and of one that is."""
        number, new = len(self.live), sum(not heard(speech) for _, speech in self.live)
        share = self.rate(number) / number
        if self.first_delay is None or new == 0:
            return share, share
        most = (share * number - LEAST_SHARE * share * (number - new)) / new
        pace = min(self.first / self.first_delay(number), most)
        return pace, (share * number - pace * new) / max(1, number - new)

    def next_event(self) -> float:
        """Returns when the next speech is heard or ends."""
        if not self.live:
            return float("inf")
        new, old = self.paces()
        delays = (
            self.seconds_to_event(left, speech) / (old if heard(speech) else new) for left, speech in self.live
        )
        return self.now + max(0.0, min(delays))

    def update(self) -> None:
        """Marks speeches as heard or ended if they are, and fills the slots from those that wait."""
        still_live = []
        for left, speech in self.live:
            if not heard(speech) and self.seconds_to_event(left, speech) <= 1e-9:
                speech.heard = self.now
            if left <= 1e-9:
                speech.ended = self.now
            else:
                still_live.append((left, speech))
        self.live = still_live
        while self.waiting and len(self.live) < self.slots:
            speech = self.waiting.popleft()
            self.live.append((speech.seconds, speech))

    def seconds_to_event(self, left: float, speech: Speech) -> float:
        """Returns the seconds of sound to make until the speech is heard, or until it ends if it is heard."""
        return left if heard(speech) else left - max(speech.seconds - self.first, 0.0)


def simulate(
    speeches: Iterable[Speech], replicas: int, rate: ByNumber, *, slots: int, first: float, at_once: int,
    queue_size: int, first_delay: ByNumber | None = None, seed: int = 0,
) -> list[Speech]:
    """Returns the speeches with their times. `at_once`: most requests at a replica; `queue_size`: most requests that
    wait in front of all replicas. Of two replicas drawn at random the one with fewer requests gets the next one, as in
    Ray Serve's router."""
    generator = random.Random(seed)
    all_replicas = [Replica(rate, slots, first, first_delay) for _ in range(replicas)]
    queue: deque[Speech] = deque()
    events: list[tuple[float, int, int]] = []  # (time, the replica's version, its number)
    done = []

    def changed(number: int) -> None:
        replica = all_replicas[number]
        replica.update()
        replica.version += 1
        if (when := replica.next_event()) != float("inf"):
            heapq.heappush(events, (when, replica.version, number))

    def assigned(speech: Speech, now: float) -> bool:
        """Gives the speech to a replica; returns False if all of them are full."""
        pair = generator.sample(range(replicas), min(2, replicas))
        number = min(pair, key=lambda k: all_replicas[k].load())
        if all_replicas[number].load() >= at_once:
            number = min(range(replicas), key=lambda k: all_replicas[k].load())
        if all_replicas[number].load() >= at_once:
            return False
        all_replicas[number].advance(now)
        all_replicas[number].waiting.append(speech)
        changed(number)
        return True

    def run_until(now: float) -> None:
        while events and events[0][0] <= now:
            when, version, number = heapq.heappop(events)
            if version == all_replicas[number].version:
                all_replicas[number].advance(when)
                changed(number)
                while queue and assigned(queue[0], when):
                    queue.popleft()

    for speech in speeches:
        run_until(speech.arrived)
        done.append(speech)
        if queue or not assigned(speech, speech.arrived):
            speech.refused = len(queue) >= queue_size
            if not speech.refused:
                queue.append(speech)
    run_until(float("inf"))
    return done


def heard(speech: Speech) -> bool:
    return speech.heard == speech.heard  # not nan


def poisson(rate: float, seconds: float, lengths: Sequence[float], seed: int = 0) -> Iterator[Speech]:
    """Yields speeches of independent listeners: `rate` a second, each of one of the `lengths` in seconds."""
    generator = random.Random(seed)
    now = generator.expovariate(rate)
    while now < seconds:
        yield Speech(now, generator.choice(lengths))
        now += generator.expovariate(rate)


def between(measured: dict[int, float]) -> ByNumber:
    """Returns a function that goes through the measured values in straight lines, and is constant beyond them."""
    known = sorted(measured)

    def value(number: int) -> float:
        if number <= known[0]:
            return measured[known[0]]
        if number >= known[-1]:
            return measured[known[-1]]
        above = bisect_left(known, number)
        low, high = known[above - 1], known[above]
        share = (number - low) / (high - low)
        return (1 - share) * measured[low] + share * measured[high]

    return value
