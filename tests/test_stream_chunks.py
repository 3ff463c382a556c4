"""When the chunks of streams and the sound of whole calls are rendered, and of what size they are."""

import random

import pytest
import torch
from scripted import CONTROL, scripted_engine, scripted_utterance, stream_of

from chatterbox_opt.engine.chunks import LOOKAHEAD
from chatterbox_opt.engine.request import Call


@pytest.mark.parametrize("seed", range(10))
def test_every_token_is_rendered_once_and_in_order(seed):
    """Whatever the pace of the utterances' tokens."""
    chance = random.Random(seed)
    whole = [[chance.choice([*range(100), CONTROL]) for _ in range(chance.choice([0, 1, 40, 130, 400]))]
             for _ in range(3)]
    whole[1] = whole[1] or [5]
    engine = scripted_engine(pace=lambda: chance.randrange(9))
    stream = stream_of(engine, *whole)
    recorders = [u.sound for u in stream._call.utterances]
    heard = list(stream)
    for recorder, tokens in zip(recorders, whole):
        assert recorder.told == [t for t in tokens if t != CONTROL]
        assert [last for _, last in recorder.calls] == [False] * (len(recorder.calls) - 1) + [True]
    assert all(chunk.shape[0] == 1 and chunk.numel() for chunk in heard)
    assert [t.tolist() for t in stream.tokens] == [recorder.told for recorder in recorders]
    assert stream.stops == ["eos"] * 3


@torch.inference_mode()
def test_the_first_chunk_does_not_wait_for_the_end():
    engine = scripted_engine()
    stream = stream_of(engine, range(90))
    (u,) = stream._call.utterances
    sound = u.sound
    engine.inbox.append(stream._call)
    seen = {}
    while not stream.done:
        engine.step()
        seen[len(u.tokens)] = len(sound.told)  # by the time its next token comes
    for n in range(1, 90):
        assert seen[n] == (25 if n >= 25 + LOOKAHEAD else 0) + (38 if n >= 25 + 38 + LOOKAHEAD else 0)
    assert sound.told == list(range(90))


@torch.inference_mode()
def test_sizes_of_chunks_do_not_depend_on_timing():
    """Otherwise a stream would sound different on a busy machine."""
    for length in (5, 28, 30, 51, 120, 400):
        sizes = []
        for pace in (1, 3, 500):
            stream = stream_of(scripted_engine(pace=lambda pace=pace: pace), range(length))
            sound = stream._call.utterances[0].sound
            list(stream)
            sizes.append([n for n, _ in sound.calls])
            assert sum(sizes[-1]) == length
        assert sizes[0] == sizes[1] == sizes[2]


@torch.inference_mode()
def test_a_whole_call_is_rendered_at_its_end():
    """Each utterance as one chunk, in any order where several cores render."""
    engine, told = scripted_engine(), []

    class Sink:
        def add(self, utterance, wave, last):
            told.append((utterance.index, wave.tolist(), last))

        def finish(self):
            told.append("finish")

    scripts = [list(range(60)), list(range(20))]
    call = Call([scripted_utterance(script) for script in scripts], Sink())
    engine.run(call)
    assert told.pop() == "finish"
    assert sorted(told) == [(0, scripts[0], True), (1, scripts[1], True)]
