"""Which utterance is served next: a table of cases, and random arrivals without loss, repetition or starvation."""

import time
from itertools import repeat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatterbox_opt.engine.chunks import LOOKAHEAD
from chatterbox_opt.engine.request import Call, Utterance
from chatterbox_opt.engine.scheduler import AHEAD, POSITIONS, SPACING, UNHEARD, Scheduler, chunk_due, deadline


def call(count=1, at=0.0, stream=False, text=10, heard=None, **how) -> Call:
    utterances = [Utterance(text_ids=[0] * text, voice={}) for _ in range(count)]
    made = Call(utterances, chunks=repeat(25) if stream else None, **how)
    made.submitted = at
    if heard is not None:
        made.first_sound, made.delivered = heard
    return made


def plan(waiting=(), speaking=(), rendering=(), slots=4, free=None, cores=1, **how):
    free = slots - len(speaking) if free is None else free
    return Scheduler(slots, cores).plan(list(waiting), list(speaking), list(rendering), free, **how)


def spoken(u: Utterance, tokens: int, ended: bool = True) -> Utterance:
    u.tokens, u.stopped = [1] * tokens, "eos" if ended else None
    return u


# ---- cases ---------------------------------------------------------------------------------------


def test_streams_join_before_whole_calls():
    whole, stream = call(at=0.0), call(at=1.0, stream=True)
    join = plan([*whole.utterances, *stream.utterances], slots=2).join
    assert [u.call for u in join] == [stream, whole]
    late = call(at=UNHEARD + 1.0, stream=True)
    assert plan([*late.utterances, *whole.utterances], slots=1).join == whole.utterances, "what waits ages"


def test_a_long_call_has_half_of_the_slots_while_others_wait():
    long, short = call(100, at=0.0), call(at=5.0)
    assert len(plan(long.utterances, slots=8).join) == 8, "alone it may have all"
    join = plan([*long.utterances, *short.utterances], slots=8).join
    assert short.utterances[0] in join
    mine = long.utterances[:4]
    assert plan([*long.utterances[4:], *short.utterances], speaking=mine, slots=8, free=1).join == short.utterances


def test_prefill_is_bounded_and_never_nothing():
    texts = call(8, text=200).utterances
    assert len(plan(texts, slots=8).join) == POSITIONS // 200
    assert len(plan(call(text=5000).utterances, slots=8).join) == 1


def test_a_request_that_needs_more_room_is_not_overtaken():
    first, second = call(at=0.0).utterances[0], call(at=1.0).utterances[0]
    busy = call(at=0.0).utterances
    join = Scheduler(4).plan([first, second], busy, [], 3, lambda u: u is not first).join
    assert join == [], "or it would never come to its turn"


def test_the_stream_that_runs_dry_first_is_rendered_first():
    near, far = (call(at=0.0, stream=True, heard=(1.0, s)) for s in (1.0, 3.0))
    ready = [spoken(c.utterances[0], 200, ended=False) for c in (far, near)]
    assert plan(speaking=ready, rendering=ready).render == [ready[1]]
    assert plan(speaking=ready, rendering=ready, cores=2).render == ready[::-1]


def test_tokens_of_a_stream_run_dry_go_before_sound_that_has_time():
    dry, rich = (call(at=0.0, stream=True, heard=(1.0, s)) for s in (0.5, 9.0))
    spoken(rich.utterances[0], 200, ended=False)
    spoken(dry.utterances[0], 3, ended=False)
    got = plan(speaking=[rich.utterances[0], dry.utterances[0]], rendering=[rich.utterances[0]])
    assert got.decode
    assert not got.render


def test_with_more_listeners_than_can_be_served_the_later_ones_wait():
    """Otherwise all of them would hear gaps."""
    begun, new = call(at=5.0, stream=True, heard=(9.0, 1.0)), call(at=6.0, stream=True)
    heads = [spoken(c.utterances[0], 200, ended=False) for c in (new, begun)]
    late = Scheduler(4).plan([], heads, heads, 0, now=9.8)
    early = Scheduler(4).plan([], heads, heads, 0, now=9.1)
    assert (late.render, early.render) == ([heads[1]], [heads[0]])


@pytest.mark.parametrize("other", [dict(at=100.0), dict(at=95.0, heard=(96.0, 4.2))], ids=["new", "about to run dry"])
def test_a_listener_who_has_enough_for_now_comes_last(other):
    """However long ago he should have heard all of it by the clock."""
    paused, other = call(4, at=0.0, stream=True, heard=(1.0, 9.0), paused=lambda: True), call(stream=True, **other)
    going = [spoken(u, 50, ended=False) for u in paused.utterances]
    head = spoken(other.utterances[0], 200, ended=False)
    got = plan(speaking=[*going, head], rendering=[going[0], head], slots=8, now=100.0)
    assert (got.decode, got.render) == (False, [head])
    assert plan(speaking=going, rendering=going[:1], now=100.0).decode, "where nobody else waits it goes on"
    late = call(2, at=0.0, stream=True, heard=(1.0, 9.0), paused=lambda: True).utterances
    whole = call(at=99.0).utterances
    assert plan([*late, *whole], slots=1, now=100.0).join == whole


def test_a_listener_who_comes_back_has_what_waits_for_him():
    now = time.perf_counter()
    back = call(stream=True, heard=(now - 50.0, 9.0), queued=lambda: 5.0)
    back.resumed()
    assert now + 5.0 <= back.runs_dry < now + 15.0
    ahead = call(stream=True, heard=(now, 90.0), queued=lambda: 5.0)
    ahead.resumed()
    assert ahead.runs_dry == now + 90.0, "he has heard nothing of it yet"


@pytest.mark.parametrize("first", ["tokens", "sound"])
def test_a_second_core_does_what_comes_second(first):
    """Two cores draw tokens and render at once; one core does only what is more urgent."""
    speaking, sounding = (call(at=at).utterances[0] for at in ((0.0, 1.0) if first == "tokens" else (1.0, 0.0)))
    spoken(sounding, 50)
    how = dict(speaking=[speaking], rendering=[sounding])
    one, two = plan(**how), plan(**how, cores=2)
    assert (one.decode, one.render) == ((True, []) if first == "tokens" else (False, [sounding]))
    assert (two.decode, two.render) == (True, [sounding])
    running = [spoken(call(at=at).utterances[0], 50) for at in (0.0, 3.0)]
    assert not plan(**how, cores=2, running=running).decode
    busy = plan(**how, cores=2, running=running[:1])
    assert (busy.decode, busy.render) == (one.decode, one.render)


def test_a_later_rendering_is_halted_for_a_sooner_one():
    running = [spoken(call(at=at).utterances[0], 50) for at in (0.0, 3.0)]
    sooner, later = (spoken(call(at=at).utterances[0], 50) for at in (2.0, 4.0))
    assert plan(rendering=[sooner], cores=2, running=running).halt == running[1:]
    assert plan(speaking=call(at=2.0).utterances, cores=2, running=running).halt == running[1:]
    assert plan(rendering=[later], cores=2, running=running).halt == []
    assert plan(rendering=[sooner], cores=3, running=running).halt == [], "it has a core"
    stream = spoken(call(at=5.0, stream=True, heard=(1.0, 1.0)).utterances[0], 200, ended=False)
    assert plan(rendering=[stream], cores=2, running=running, now=9.0).halt == running, "it is about to run dry"


def test_all_cores_are_for_the_sound_that_a_listener_waits_for():
    """A stream before its first sound or about to run dry, not one that is well ahead."""
    speaking = call(at=50.0).utterances
    for heard, beside in ((None, False), ((9.0, 1.0), False), ((9.0, 30.0), True)):
        head = spoken(call(at=5.0, stream=True, heard=heard).utterances[0], 200, ended=False)
        got = plan(speaking=speaking, rendering=[head], cores=2, now=9.8)
        assert (got.decode, got.render) == (beside, [head])


def test_a_batch_is_spoken_before_it_is_rendered_and_a_later_call_is_not_held_up():
    batch, later = call(20, at=0.0), call(at=3.0)
    done, going = batch.utterances[:10], batch.utterances[10:]
    for u in done:
        spoken(u, 50)
    assert plan(speaking=going, rendering=done, slots=20).decode
    spoken(later.utterances[0], 50)
    order = sorted([*done, *later.utterances], key=deadline)
    assert order.index(later.utterances[0]) == 3 / SPACING + 1


@pytest.mark.parametrize(("tokens", "ended", "due"), [
    (0, False, None), (25 + LOOKAHEAD - 1, False, None), (25 + LOOKAHEAD, False, (25 + LOOKAHEAD, False)),
    (27, True, (27, True)), (28, True, (25 + LOOKAHEAD, False)), (80, True, (25 + LOOKAHEAD, False)),
    (0, True, (0, True)),
])  # fmt: skip
def test_when_a_chunk_is_due(tokens, ended, due):
    stream = call(2, stream=True)
    assert chunk_due(spoken(stream.utterances[0], tokens, ended)) == due
    assert chunk_due(spoken(stream.utterances[1], tokens, ended)) is None, "in its turn"
    whole = call()
    assert chunk_due(spoken(whole.utterances[0], tokens, ended)) == ((tokens, True) if ended else None)


def test_a_slow_listener_pauses_only_its_own_sound():
    full, other = call(stream=True, paused=lambda: True), call(stream=True)
    heads = [spoken(c.utterances[0], 200) for c in (full, other)]
    assert plan(rendering=heads, cores=2).render == heads[1:]


def test_a_streamed_text_is_spoken_a_little_ahead():
    stream = call(20, stream=True)
    assert plan(stream.utterances, slots=16).join == stream.utterances[:AHEAD]


# ---- random arrivals -----------------------------------------------------------------------------


class World:
    """Does what the engine does with a plan, without networks: slots, tokens and renderings."""

    def __init__(self, slots: int, cores: int) -> None:
        self.scheduler, self.slots = Scheduler(slots, cores), slots
        self.running: dict[Utterance, int] = {}  # on another core, for so many steps more
        self.now, self.waiting, self.speaking, self.calls = 0.0, [], [], []
        self.steps: dict[Utterance, int] = {}
        self.finished: list[Utterance] = []

    def arrive(self, made: Call) -> None:
        self.calls.append(made)
        self.waiting += made.utterances

    def step(self, length: dict[Utterance, int]) -> None:
        heads = [c.utterances[c.head] for c in self.calls if c.stream and c.head < len(c.utterances)]
        whole = [u for c in self.calls if not c.stream for u in c.utterances if u.stopped and not u.done]
        ready = [u for u in heads + whole if u not in self.running]
        running = list(self.running)
        plan = self.scheduler.plan(
            self.waiting, self.speaking, ready, self.slots - len(self.speaking), now=self.now, running=running
        )
        assert len(running) + len(plan.render) + plan.decode <= self.scheduler.cores
        assert len(set(plan.join)) == len(plan.join)
        assert len(self.speaking) + len(plan.join) <= self.slots
        for u in plan.join:
            self.waiting.remove(u)
            self.speaking.append(u)
        for u in plan.halt:
            self.running[u] = 1
        for u in plan.render:
            u.rendering = True
            self.running[u] = self.lasts(u)
        if plan.decode:
            for u in self.speaking:
                u.tokens.append(1)
                u.stopped = "eos" if len(u.tokens) >= length[u] else None
            self.speaking = [u for u in self.speaking if not u.stopped]
        for u in [u for u in self.running if self.ends(u)]:
            self.render(u)
        self.now += 0.05
        idle = not (self.waiting or self.speaking or whole or running)
        assert plan.join or plan.render or plan.decode or running or idle, "work is left"

    def lasts(self, u: Utterance) -> int:
        return 1 if self.scheduler.cores == 1 else 1 + len(u.tokens) % 3

    def ends(self, u: Utterance) -> bool:
        self.running[u] -= 1
        return not self.running[u]

    def render(self, u: Utterance) -> None:
        del self.running[u]
        self.steps[u] = self.steps.get(u, 0) + 1
        if self.steps[u] < 3:
            return
        self.steps[u], u.rendering = 0, False
        count, last = len(u.tokens) if not u.call.stream else u.rendered + u.call.size, not u.call.stream
        if u.call.stream:
            last = u.stopped is not None and len(u.tokens) < u.rendered + u.call.size + LOOKAHEAD
        u.call.first_sound = u.call.first_sound or self.now
        u.call.delivered += (count - u.rendered) / 25
        u.rendered = count
        if last:
            u.done = True
            u.call.head += u.call.stream
            self.finished.append(u)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_every_utterance_ends_once(data):
    world, length, arrivals = World(data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))), {}, []
    for _ in range(data.draw(st.integers(1, 8))):
        count, at = data.draw(st.integers(1, 6)), data.draw(st.integers(0, 40)) * 0.1
        made = call(count, at=at, stream=data.draw(st.booleans()))
        arrivals.append(made)
        for u in made.utterances:
            length[u] = data.draw(st.integers(1, 120))
    arrivals.sort(key=lambda c: c.submitted)
    everything = [u for c in arrivals for u in c.utterances]
    for _ in range(40_000):
        while arrivals and arrivals[0].submitted <= world.now:
            world.arrive(arrivals.pop(0))
        world.step(length)
        if not arrivals and len(world.finished) == len(everything):
            break
    assert sorted(map(id, world.finished)) == sorted(map(id, everything)), "each ends, and ends once"
    for made in world.calls:
        if made.stream:
            own = [u for u in world.finished if u.call is made]
            assert own == made.utterances, "told in their order"
