"""Decides where an utterance ends, on the host, from the tokens it fetches anyway."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import STOP_SPEECH

BROKEN = -1  # the token drawn if the logits are not finite
LOOP = 75  # tokens, 3 s: a pause may last 2 s, music does not repeat to the token
PERIODS = range(1, 9)
PER_TEXT_TOKEN = 14  # speech tokens per text token (a letter or part of a word): slow speech needs less than half of it
FLOOR = 300  # tokens, 12 s: allowed even for a text of one word


def ending(tokens: Sequence[int], searched: int, limit: int, text_tokens: int, guard: bool) -> tuple[int, str] | None:
    """Returns (tokens that count, why they end), or None while the utterance goes on. `searched` tokens were examined
    by earlier calls."""
    for i, token in enumerate(tokens[searched:limit], searched):  # what was drawn past an end does not count
        if token == STOP_SPEECH:
            return i + 1, "eos"
        if token == BROKEN:
            return i, "broken"
    if len(tokens) >= limit:
        return limit, "limit"
    if guard and ran_away(tokens, text_tokens):
        return len(tokens), "guard"
    return None


def ran_away(tokens: Sequence[int], text_tokens: int) -> bool:
    """Whether the last 3 s repeat one short pattern, or the speech is far longer than the text can need."""
    if len(tokens) > FLOOR + PER_TEXT_TOKEN * text_tokens:
        return True
    if len(tokens) < LOOP:
        return False
    tail = tokens[-LOOP:]
    return any(all(tail[i] == tail[i - p] for i in range(p, LOOP)) for p in PERIODS)
