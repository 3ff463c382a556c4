"""Who is served next: order and limits, no tensors.

Work has a deadline: for a stream the moment its listener runs dry, for everything else a few seconds after it was
asked for. The earliest deadline goes first, but for listeners who have begun to hear something and are about to run
dry: with more of them than the machine can serve, the later ones wait instead of all of them hearing gaps. A deadline
does not move while nothing is delivered, what comes later has a later one, and speech ends, so nothing starves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from .chunks import LOOKAHEAD
from .request import Utterance

PATIENCE = 2.0  # s that speech nobody hears yet lets streams go ahead of it
AHEAD = 4  # utterances of a streamed text that are spoken side by side: the first a little later, the others in time
APART = 1.0  # s between the deadlines of a call's utterances: what follows has time
POSITIONS = 512  # that may be prefilled in a step, beside at least one utterance: speech in progress waits for it
LEAD = 0.5  # s before it runs dry that a stream goes ahead of everything that has not begun
IDLE = 2, 0.0  # behind everything


@dataclass
class Plan:
    join: list[Utterance] = field(default_factory=list)
    decode: bool = False  # a block of tokens for all
    render: list[Utterance] = field(default_factory=list)  # a step of the flow for the chunks of these


@dataclass
class Scheduler:
    slots: int
    renderings: int = 1  # that are worked on at the same time

    def plan(
        self, waiting: Sequence[Utterance], speaking: Sequence[Utterance], rendering: Iterable[Utterance], free: int,
        fits: Callable[[Utterance], bool] = lambda _: True, now: float = 0.0,
    ) -> Plan:
        """`waiting` for a slot, `speaking` in one, `rendering`: whose sound is or could be made at `now`."""
        join = self.join(waiting, speaking, free, fits)
        urgent = min((urgency(u, now, together=True) for u in speaking if not sounds(u)), default=IDLE)
        due = sorted(((urgency(u, now), i, u) for i, u in enumerate(rendering) if sounds(u)), key=lambda d: d[:2])
        due = [u for when, _, u in due if when < urgent]
        if due:
            return Plan(join, render=due[: self.renderings])
        return Plan(join, decode=bool(speaking))

    def join(
        self, waiting: Sequence[Utterance], speaking: Sequence[Utterance], free: int, fits: Callable[[Utterance], bool]
    ) -> list[Utterance]:
        """Earliest deadline first. A call has at most half of the slots while others wait; who needs more room than
        there is now is waited for, so that it comes to its turn."""
        held = Counter(id(u.call) for u in speaking)
        out: list[Utterance] = []
        queue, positions = sorted(filter(ready, waiting), key=deadline), 0
        calls = {id(u.call) for u in queue}
        for fair in (True, False):
            for u in queue:
                crowded = fair and len(calls) > 1 and held[id(u.call)] >= max(1, self.slots // 2)
                if u in out or crowded:
                    continue
                if len(out) == free or not fits(u) or (out and positions + len(u.text_ids) > POSITIONS):
                    return out
                out.append(u)
                positions += len(u.text_ids)
                held[id(u.call)] += 1
        return out


def ready(u: Utterance) -> bool:
    """Of a streamed text only the next few utterances are spoken ahead."""
    return not u.call.stream or u.index < u.call.head + AHEAD


def deadline(u: Utterance, together: bool = False) -> float:
    """On time.perf_counter()'s clock. Utterances of one call follow each other, so that a long call does not hold up
    all that comes behind it; as long as they are spoken `together` the first one's counts for all."""
    call = u.call
    start = call.runs_dry if call.stream else call.submitted + PATIENCE
    return start + (0.0 if together and not call.stream else APART * (u.index - call.head))


def urgency(u: Utterance, now: float, together: bool = False) -> tuple[int, float]:
    """The smallest goes first."""
    begun = u.call.stream and u.call.first_sound is not None and u.index == u.call.head
    return 0 if begun and u.call.runs_dry < now + LEAD else 1, deadline(u, together)


def sounds(u: Utterance) -> bool:
    """Whether the next thing it needs is to be rendered, not to be spoken on."""
    return u.rendering or chunk_due(u) is not None


def chunk_due(u: Utterance) -> tuple[int, bool] | None:
    """(tokens, whether they are the last) of the chunk that can be rendered now, if any."""
    call, ended = u.call, u.stopped is not None
    if u.done or u.rendering or u.voice is None:
        return None
    if not call.stream:
        return (len(u.tokens), True) if ended else None
    if u.index != call.head or call.paused():
        return None
    end = u.told + call.size
    if len(u.tokens) >= end + LOOKAHEAD:  # where chunks meet does not depend on how late it is looked
        return end + LOOKAHEAD, False
    return (len(u.tokens), True) if ended else None
