"""Who is served next: order and limits, no tensors.

Work has a deadline: for a stream the moment its listener runs dry, for everything else a few seconds after it was
asked for. The earliest deadline goes first. A deadline does not move while nothing is delivered, and what comes later
has a later one, so nothing starves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from .chunks import LOOKAHEAD
from .request import Utterance

PATIENCE = 2.0  # s that speech nobody hears yet lets streams go ahead of it
AHEAD = 4  # utterances of a streamed text that are spoken side by side: the first a little later, the others in time
APART = 1.0  # s between the deadlines of a streamed text's utterances: what follows has time
POSITIONS = 512  # that may be prefilled in a step, beside at least one utterance: speech in progress waits for it
IDLE = float("inf")


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
        fits: Callable[[Utterance], bool] = lambda _: True,
    ) -> Plan:
        """`waiting` for a slot, `speaking` in one, `rendering`: whose sound is or could be made now."""
        join = self.join(waiting, speaking, free, fits)
        urgent = min((deadline(u) for u in speaking if not sounds(u)), default=IDLE)
        due = sorted((u for u in rendering if sounds(u) and deadline(u) < urgent), key=deadline)
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


def deadline(u: Utterance) -> float:
    """On time.perf_counter()'s clock."""
    call = u.call
    return call.runs_dry + APART * (u.index - call.head) if call.stream else call.submitted + PATIENCE


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
    if ended and len(u.tokens) <= end + call.size:  # no tiny last chunk
        return len(u.tokens), True
    return (end + LOOKAHEAD, False) if len(u.tokens) >= end + LOOKAHEAD else None
