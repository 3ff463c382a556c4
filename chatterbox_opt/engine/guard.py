"""When speech has plainly run away. Looked at on the host, at the tokens it fetches anyway."""

from __future__ import annotations

LOOP = 75  # tokens, 3 s: a pause may last 2 s, music does not repeat to the token
PERIODS = range(1, 9)
PER_TEXT_TOKEN = 14  # a letter or a piece of a word, at less than half the speed of slow speech
FLOOR = 300  # tokens, 12 s: what a one-word text may take


def ran_away(tokens: list[int], text_tokens: int) -> bool:
    """The last 3 s repeat one short pattern, or the speech is far longer than its text can need."""
    if len(tokens) > FLOOR + PER_TEXT_TOKEN * text_tokens:
        return True
    if len(tokens) < LOOP:
        return False
    tail = tokens[-LOOP:]
    return any(all(tail[i] == tail[i - p] for i in range(p, LOOP)) for p in PERIODS)
