"""Applies a call's `markup=`: parses the text into segments, and prepares the voices that they name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from .config import ModelConfig
from .text.languages import SUPPORTED_LANGUAGES
from .text.markup import Segment, parse
from .voice import Conditionals

_EVENT = re.compile(r"\[[a-z][a-z _-]*\]")  # a sound with a token of its own, such as [clear throat]

_events: WeakKeyDictionary[Any, tuple[int, frozenset[str]]] = WeakKeyDictionary()  # tokenizer -> its size, its events

Marked = tuple[tuple[Segment, ...], dict[str, Conditionals]]


def marked(text: str, markup: Any, config: ModelConfig, tokenizer: Any, prepared: Callable[[Any], Any]) -> Marked:
    """Returns (segments, prepared voice per name used in them). `markup` is True, or a mapping from the names that
    [voice NAME] may use to what `prepared` accepts; False or None returns no segments."""
    if markup is False or markup is None:
        return (), {}
    if markup is not True and not isinstance(markup, Mapping):
        raise ValueError(f"markup is {type(markup).__name__}: True is needed, or the voices by their names")
    voices = {} if markup is True else markup
    events = events_of(tokenizer) if config.t3.is_gpt else frozenset()
    languages = SUPPORTED_LANGUAGES if config.family == "mtl" else ()
    segments = parse(text, events, voices, languages)
    named = dict.fromkeys(s.voice for s in segments if s.voice is not None)
    return segments, {name: prepared(voices[name]) for name in named}


def events_of(tokenizer: Any) -> frozenset[str]:
    """Returns the tokens for sounds. The vocabulary, of which it takes 60 ms to be listed, is looked through once, and
    again when it has grown."""
    size, found = _events.get(tokenizer, (-1, frozenset()))
    if size != len(tokenizer):
        found = frozenset(token for token in tokenizer.get_vocab() if _EVENT.fullmatch(token))
        _events[tokenizer] = len(tokenizer), found
    return found
