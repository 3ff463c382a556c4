"""Replicas as a queueing model: speeches share a replica's rate, wait for a place in it, and go where fewer are."""

from __future__ import annotations

import heapq
import random
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

Rate = Callable[[int], float]  # of the number of speeches at once
LEAST = 0.1  # of an equal share, for those that are heard while others are hurried


@dataclass
class Speech:
    arrived: float  # s
    seconds: float  # of sound
    heard: float = float("nan")  # s, when its first sound was there
    ended: float = float("nan")
    refused: bool = False


@dataclass
class Replica:
    rate: Rate  # seconds of speech that it makes in a second
    slots: int  # speeches side by side
    first: float  # seconds of sound that are made before the first is heard
    soon: Rate | None  # seconds until then; None: speeches share the rate equally, new ones too
    live: list[tuple[float, Speech]] = field(default_factory=list)  # (seconds still to make, speech)
    waiting: deque[Speech] = field(default_factory=deque)
    now: float = 0.0
    version: int = 0  # of what was planned for it

    def load(self) -> int:
        return len(self.live) + len(self.waiting)

    def advance(self, now: float) -> None:
        """To a moment at or before its next event."""
        if self.live:
            new, old = self.paces()
            took = now - self.now
            self.live = [(left - took * (old if heard(speech) else new), speech) for left, speech in self.live]
        self.now = now

    def paces(self) -> tuple[float, float]:
        """Of a speech that nobody hears yet, and of one that is heard: seconds of it in a second."""
        number, new = len(self.live), sum(not heard(speech) for _, speech in self.live)
        share = self.rate(number) / number
        if self.soon is None or new == 0:
            return share, share
        most = (share * number - LEAST * share * (number - new)) / new
        pace = min(self.first / self.soon(number), most)
        return pace, (share * number - pace * new) / max(1, number - new)

    def next(self) -> float:
        """When somebody hears the first sound, or the last."""
        if not self.live:
            return float("inf")
        new, old = self.paces()
        return self.now + max(0.0, min(self.due(*one) / (old if heard(one[1]) else new) for one in self.live))

    def due(self, left: float, speech: Speech) -> float:
        """Seconds of its sound until its next event."""
        return left if heard(speech) else left - max(speech.seconds - self.first, 0.0)

    def settle(self) -> None:
        """Whoever is due hears, ends, and makes room."""
        still = []
        for left, speech in self.live:
            if not heard(speech) and self.due(left, speech) <= 1e-9:
                speech.heard = self.now
            if left <= 1e-9:
                speech.ended = self.now
            else:
                still.append((left, speech))
        self.live = still
        while self.waiting and len(self.live) < self.slots:
            speech = self.waiting.popleft()
            self.live.append((speech.seconds, speech))


def simulate(
    speeches: Iterable[Speech], replicas: int, rate: Rate, *, slots: int, first: float, at_once: int, queue: int,
    soon: Rate | None = None, seed: int = 0,
) -> list[Speech]:
    """`at_once`: requests at a replica; `queue`: those that wait in front of all of them. Of two replicas by chance the
    one with fewer gets a request, as Ray's router has it."""
    choose = random.Random(seed)
    crew = [Replica(rate, slots, first, soon) for _ in range(replicas)]
    front: deque[Speech] = deque()
    events: list[tuple[float, int, int]] = []
    done = []

    def changed(number: int) -> None:
        one = crew[number]
        one.settle()
        one.version += 1
        if (when := one.next()) != float("inf"):
            heapq.heappush(events, (when, one.version, number))

    def given(speech: Speech, now: float) -> bool:
        pair = choose.sample(range(replicas), min(2, replicas))
        number = min(pair, key=lambda k: crew[k].load())
        if crew[number].load() >= at_once:
            number = min(range(replicas), key=lambda k: crew[k].load())
        if crew[number].load() >= at_once:
            return False
        crew[number].advance(now)
        crew[number].waiting.append(speech)
        changed(number)
        return True

    def until(now: float) -> None:
        while events and events[0][0] <= now:
            when, version, number = heapq.heappop(events)
            if version == crew[number].version:
                crew[number].advance(when)
                changed(number)
                while front and given(front[0], when):
                    front.popleft()

    for speech in speeches:
        until(speech.arrived)
        done.append(speech)
        if front or not given(speech, speech.arrived):
            speech.refused = len(front) >= queue
            if not speech.refused:
                front.append(speech)
    until(float("inf"))
    return done


def heard(speech: Speech) -> bool:
    return speech.heard == speech.heard


def poisson(rate: float, seconds: float, lengths: Sequence[float], seed: int = 0) -> Iterator[Speech]:
    """Independent askers: so many requests a second, each for one of so many seconds of sound."""
    draw = random.Random(seed)
    now = draw.expovariate(rate)
    while now < seconds:
        yield Speech(now, draw.choice(lengths))
        now += draw.expovariate(rate)


def between(measured: dict[int, float]) -> Rate:
    """What was measured by number of speeches, and straight lines from one to the next."""
    known = sorted(measured)

    def rate(number: int) -> float:
        if number <= known[0]:
            return measured[known[0]]
        if number >= known[-1]:
            return measured[known[-1]]
        above = bisect_left(known, number)
        low, high = known[above - 1], known[above]
        share = (number - low) / (high - low)
        return (1 - share) * measured[low] + share * measured[high]

    return rate
