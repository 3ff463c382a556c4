"""What the engine is given: a call and its utterances."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Protocol

from torch import Tensor

from ..config import SPEECH_CODES, T3Config
from ..options import EngineOptions, SamplingOptions
from .noise import RequestNoise

SPARE = 4  # positions per row that the warm-up of a captured step writes past the utterance's own


class Cancelled(RuntimeError):
    """Raised by a call whose `cancel` was set; the model stays usable."""


class NotFinite(RuntimeError):
    """Raised when a network returns NaN or infinity."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} not finite: broken weights, or a precision too low for them")


def copy_of(error: BaseException) -> BaseException:
    """Returns an equal exception, for another thread to raise: raised in several, one would get the tracebacks of all.
    One that cannot be copied is returned itself."""
    try:
        other = copy.copy(error)
        if type(other) is not type(error) or str(other) != str(error):  # its __init__ makes another message of it
            return error
    except Exception:
        return error
    other.__cause__, other.__context__ = error.__cause__, error.__context__
    other.__suppress_context__ = error.__suppress_context__
    return other.with_traceback(error.__traceback__)


@dataclass(eq=False)
class Utterance:
    """One text that is spoken as one set of rows, from its text ids to its sound. A long text has several."""

    text_ids: Tensor | None = None  # (T,) long, with Llama's start and end ids; None: `tokens` are given
    cond: Any = None  # speaker_emb (1, 256), cond_prompt_speech_tokens (1, n), emotion_adv (1, 1, 1)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    voice: dict[str, Any] | None = None  # S3Gen's half of the voice; None: only tokens are wanted
    steps: int | None = None  # of the flow; None: the model's own
    tail: tuple[int, ...] = ()  # tokens appended to the drawn ones when rendering
    text: str = ""  # as in the caller's text, for reports to the caller
    read: str = ""  # the same as the model reads it
    chars: tuple[int, int] = (0, 0)  # its span in the caller's text: first, past the last
    before: float | None = None  # seconds of silence before it; None: the default between pieces
    after: float = 0.0  # seconds of silence after it, if it is the text's last
    drop_last_token: bool = False  # leave out its sound
    tokens: list[int] = field(default_factory=list)  # drawn so far, or the caller's
    noise: RequestNoise | None = None  # set before its call is submitted
    sound_noise: RequestNoise | None = None  # of a stream: its own, so that streaming changes no token

    # set by the engine
    call: Call | None = None
    index: int = 0  # in the call
    searched: int = 0  # tokens already searched for an end
    stopped: str | None = None  # why its tokens end: "eos" | "limit" | "guard" | "given" | "broken"
    sound: Any = None  # chunks.Sound, from its first chunk on
    rendered: int = 0  # tokens already rendered
    rendering: bool = False  # a chunk of it is being rendered
    done: bool = False

    @property
    def rows(self) -> int:
        return 2 if self.sampling.cfg_weight > 0 else 1

    def audible(self, until: int | None = None) -> list[int]:
        """Returns its tokens without control ids: the first `until`, or all of them and the tail."""
        heard = [t for t in self.tokens[:until] if 0 <= t < SPEECH_CODES]
        return heard + list(self.tail) if until is None and heard else heard


class Sink(Protocol):
    """Where a call's sound goes. An exception ends only its own call."""

    def add(self, utterance: Utterance, wave: Tensor, last: bool) -> None:
        """Takes (N,) samples that continue the utterance; `last`: no more follow. Called on the thread that drives the
        engine."""

    def finish(self) -> None:
        """Called once every utterance is complete, on the thread that drives the engine or beside it; the call may have
        been ended meanwhile."""


class Call:
    """One caller's utterances, where their sound goes, and their progress."""

    def __init__(
        self,
        utterances: Sequence[Utterance],
        sink: Sink | None = None,
        *,
        chunks: Iterator[int] | None = None,
        cancel: Any = None,
        progress: Callable[[int, int], None] | None = None,
        paused: Callable[[], bool] = lambda: False,
        queued: Callable[[], float] = lambda: 0.0,
        ended: Callable[[bool], None] = lambda spoken: None,
        counts: bool = True,
    ) -> None:
        """`chunks`: tokens of each chunk of a stream, whose utterances are delivered in order; None: each utterance is
        rendered whole. `paused()`: whether the listener has enough for now. `queued()`: seconds of sound that wait for
        the listener. `ended(spoken)` is called once, at the end; `spoken`: without an error. `counts`: False for one of
        several calls that make a speech; the last one counts as finished."""
        self.utterances, self.sink, self.chunks = list(utterances), sink, chunks
        self.cancel, self.progress, self.paused, self.queued, self.ended = cancel, progress, paused, queued, ended
        self.counts = counts
        self.size = next(chunks) if chunks else 0  # tokens of the next chunk
        self.head = 0  # the first utterance that is not complete
        self.left = sum(not utterance.done for utterance in self.utterances)
        self.submitted = 0.0  # on time.perf_counter()'s clock
        self.started = False  # whether it has had a slot
        self.first_sound: float | None = None
        self.delivered = 0.0  # seconds of sound delivered
        self.late = 0.0  # seconds that its listener began later than at the first sound, or had paused
        self.seconds: dict[str, float] = {}  # per stage; time shared with other calls counts in full for each
        self.error: BaseException | None = None
        self.done = False
        self.ready: Any = None  # event of the caller's CUDA stream after which its tensors may be read
        for i, utterance in enumerate(self.utterances):
            utterance.call, utterance.index = self, i

    @property
    def stream(self) -> bool:
        return self.chunks is not None

    @property
    def cancelled(self) -> bool:
        return self.cancel is not None and self.cancel.is_set()

    @property
    def ceiling(self) -> int:
        return sum(u.sampling.max_new_tokens for u in self.utterances)

    @property
    def runs_dry(self) -> float:
        """The time at which its listener has heard all sound so far, at the soonest; never while he is paused."""
        if self.first_sound is None:
            return self.submitted
        return inf if self.paused() else self.first_sound + self.delivered + self.late

    def resumed(self) -> None:
        """Called when its listener, who was paused, takes a chunk: what waits for him he hears from now on."""
        if self.first_sound is not None:
            self.late = max(self.late, time.perf_counter() + self.queued() - self.first_sound - self.delivered)

    def let_go(self) -> None:
        """Of what leads back to it, at its end: in a cycle its sound would wait for a garbage collection, and beside
        torch full ones are rare."""
        self.utterances, self.sink, self.cancel, self.progress = [], None, None, None
        self.paused, self.queued, self.ended = lambda: False, lambda: 0.0, lambda spoken: None

    def give_back_noise(self) -> None:
        for utterance in self.utterances:
            utterance.noise.give_back()

    def report(self) -> None:
        if self.progress is not None:
            self.progress(sum(len(u.tokens) for u in self.utterances), self.ceiling)


def check(utterance: Utterance, config: T3Config, options: EngineOptions) -> None:
    """Raises ValueError for an utterance that this model cannot speak."""
    n, steps = len(utterance.text_ids), utterance.sampling.max_new_tokens
    most = config.max_positions - config.prefix_len - 8 if config.is_gpt else config.text_positions
    if n > most:
        raise ValueError(f"the text has {n} tokens, the position table {most}; split the text (max_chars=280)")
    if n and (int(utterance.text_ids.max()) >= config.text_vocab or int(utterance.text_ids.min()) < 0):
        raise ValueError(f"a text token lies outside this vocabulary of {config.text_vocab}: another tokenizer's?")
    if utterance.cond.cond_prompt_speech_tokens is None:
        raise ValueError("the voice has no prompt tokens; prepare it with this model's prepare_voice()")
    most = config.speech_positions
    if not config.is_gpt and steps > most - 2:
        raise ValueError(f"max_new_tokens={steps}: this model counts up to {most - 2}; split the text (max_chars)")
    needed = positions(utterance, config, options)
    most = min(options.cache_len, config.max_positions)
    if needed > most:
        name = "cache_len" if most == options.cache_len else "this model's position table"
        raise ValueError(
            f"{needed} positions are needed for voice, text and max_new_tokens={steps}, {name} is {most}; "
            "split the text, or lower max_new_tokens"
        )


def positions(utterance: Utterance, config: T3Config, options: EngineOptions) -> int:
    """Returns the cache positions that it can occupy, including tokens drawn past its end."""
    prefix = utterance.cond.cond_prompt_speech_tokens.shape[-1] + 1 if config.is_gpt else config.prefix_len
    return prefix + len(utterance.text_ids) + 2 + utterance.sampling.max_new_tokens + 2 * options.poll_every + SPARE

