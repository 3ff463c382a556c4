"""Where an utterance's tokens end."""

import pytest

from chatterbox_opt.config import STOP_SPEECH
from chatterbox_opt.engine.endings import BROKEN, FLOOR, LOOP, PER_TEXT_TOKEN, ending


@pytest.mark.parametrize(
    ("tokens", "limit", "wanted"),
    [
        ([5, 6], 9, None),
        ([5, 6, STOP_SPEECH], 9, (3, "eos")),
        ([5, 6, STOP_SPEECH], 3, (3, "eos")),
        ([5, 6, STOP_SPEECH], 2, (2, "limit")),
        ([5, BROKEN, STOP_SPEECH], 9, (1, "broken")),
        ([5, STOP_SPEECH, BROKEN, BROKEN], 9, (2, "eos")),  # a block goes on past an end, on numbers of no meaning
        ([5, 6, BROKEN], 2, (2, "limit")),
        ([5, 6, 7], 2, (2, "limit")),
    ],
)
def test_the_first_end_counts(tokens, limit, wanted):
    assert ending(tokens, 0, limit, 5, guard=True) == wanted
    for searched in range(min(len(tokens), wanted[0] if wanted else limit)):
        assert ending(tokens, searched, limit, 5, guard=True) == wanted


def test_speech_that_runs_away_is_stopped_unless_it_may():
    most = FLOOR + PER_TEXT_TOKEN * 5
    for tokens in ([1, 2, 3] * (LOOP // 3), list(range(most + 1))):
        assert ending(tokens, 0, 4000, 5, guard=True) == (len(tokens), "guard")
        assert ending(tokens, 0, 4000, 5, guard=False) is None
        assert ending(tokens[:-1], 0, 4000, 5, guard=True) is None
