"""Decides what the engine does next: order and limits, no tensors.

Every utterance has a deadline: for a stream the moment its listener has heard all sound so far, for other calls a few
seconds after submission. The earliest deadline is served first, except that a stream which has begun and is about to
run dry precedes all others: if there are more streams than the machine can serve, the later ones wait, instead of all
having gaps. A stream whose listener has enough for now comes last; of others a deadline does not move while nothing is
delivered, later calls have later ones, and utterances end, so none starves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from .chunks import LOOKAHEAD
from .request import Utterance

UNHEARD = 2.0  # s after submission until the deadline of a call that is not streamed
AHEAD = 4  # utterances of one stream in slots at once: delays its first a little, has the others ready in time
SPACING = 1.0  # s between the deadlines of a call's utterances: later ones are needed later
POSITIONS = 512  # prefilled per step at most (but at least one utterance): live rows wait for a prefill
LEAD = 0.5  # s before it runs dry from which a stream that has begun precedes everything else
IDLE = 2, 0.0  # sorts after every urgency()


@dataclass
class Plan:
    join: list[Utterance] = field(default_factory=list)
    decode: bool = False  # a block of tokens for every live slot
    render: list[Utterance] = field(default_factory=list)  # the chunks of these, beside it
    halt: list[Utterance] = field(default_factory=list)  # running, and something sooner has no core


@dataclass
class Scheduler:
    slots: int
    cores: int = 1  # that work in parallel: each on a rendering, or one of them on the tokens

    def plan(
        self, waiting: Sequence[Utterance], speaking: Sequence[Utterance], rendering: Iterable[Utterance], free: int,
        fits: Callable[[Utterance], bool] = lambda _: True, now: float = 0.0, running: Sequence[Utterance] = (),
    ) -> Plan:
        """`waiting` are without a slot, `speaking` have one; the sound of `rendering` could be made next, that of
        `running` is already, on a core each."""
        join, cores = self.join(waiting, speaking, free, fits), self.cores - len(running)
        tokens = min((urgency(u, now, together=True) for u in speaking if not needs_rendering(u)), default=IDLE)
        sounding = [u for u in rendering if needs_rendering(u)]
        due = sorted(((urgency(u, now), i, u) for i, u in enumerate(sounding)), key=lambda d: d[:2])
        sooner = [u for when, _, u in due if when < tokens]
        later = [u for when, _, u in due if when >= tokens]
        render = sooner[: max(0, cores)]
        if not sooner:
            decode = bool(speaking) and cores > 0
        else:  # alone, a rendering has all cores: not to be slowed down while its listener waits
            decode = tokens != IDLE and len(render) < cores and not any(hurried(u, now) for u in render)
        render += later[: max(0, cores - len(render) - decode)]
        left = min([when for when, _, u in due if u not in render] + ([] if decode else [tokens]), default=IDLE)
        return Plan(join, decode, render, [u for u in running if urgency(u, now) > left])

    def join(
        self, waiting: Sequence[Utterance], speaking: Sequence[Utterance], free: int, fits: Callable[[Utterance], bool]
    ) -> list[Utterance]:
        """Returns the utterances that get a slot now, earliest deadline first. A call has at most half of the slots
        while others wait. If the next one needs more room than there is, those behind it wait too, so that it is not
        overtaken for ever."""
        if not free:  # a thousand may wait
            return []
        held = Counter(id(u.call) for u in speaking)
        out: list[Utterance] = []
        queue, positions = sorted(filter(may_join, waiting), key=deadline), 0
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


def first_to_join(waiting: Iterable[Utterance]) -> Utterance | None:
    """Returns the utterance that Scheduler.join() looks at first, for which there must be room if no slot is taken."""
    return min(filter(may_join, waiting), key=deadline, default=None)


def may_join(u: Utterance) -> bool:
    """Whether it may get a slot: of a stream only the next few utterances may."""
    return not u.call.stream or u.index < u.call.head + AHEAD


def deadline(u: Utterance, together: bool = False) -> float:
    """Returns a time of time.perf_counter(). Deadlines within a call are spaced, so that a long call does not hold up
    later ones; `together`: the first utterance's counts for all of a call, as they are decoded in one batch."""
    call = u.call
    start = call.runs_dry if call.stream else call.submitted + UNHEARD
    return start + (0.0 if together and not call.stream else SPACING * (u.index - call.head))


def urgency(u: Utterance, now: float, together: bool = False) -> tuple[int, float]:
    """Returns the sort key of an utterance; the smallest is served first."""
    begun = u.call.stream and u.call.first_sound is not None and u.index == u.call.head
    return 0 if begun and u.call.runs_dry < now + LEAD else 1, deadline(u, together)


def hurried(u: Utterance, now: float) -> bool:
    """Whether its listener has nothing to hear, or soon will not."""
    return u.call.stream and u.index == u.call.head and u.call.runs_dry < now + LEAD


def needs_rendering(u: Utterance) -> bool:
    """Whether its next work is rendering a chunk, and not decoding more tokens."""
    return u.rendering or chunk_due(u) is not None


def chunk_due(u: Utterance) -> tuple[int, bool] | None:
    """Returns (tokens up to its end, whether they are the last) of the chunk that can be rendered now, if any."""
    call, ended = u.call, u.stopped is not None
    if u.done or u.rendering or u.voice is None:
        return None
    if not call.stream:
        return (len(u.tokens), True) if ended else None
    if u.index != call.head or call.paused():
        return None
    end = u.rendered + call.size
    if len(u.tokens) >= end + LOOKAHEAD:  # chunk borders do not depend on when this is called
        return end + LOOKAHEAD, False
    return (len(u.tokens), True) if ended else None
