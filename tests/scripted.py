"""An engine without networks, with scripted tokens and one sample per token, for tests of order and timing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch

from chatterbox_opt.audio.joins import ChunkJoiner
from chatterbox_opt.config import SPEECH_CODES, tiny
from chatterbox_opt.engine.chunks import LOOKAHEAD, chunk_sizes
from chatterbox_opt.engine.engine import Engine
from chatterbox_opt.engine.noise import RequestNoise
from chatterbox_opt.engine.request import Call, Utterance
from chatterbox_opt.options import EngineOptions
from chatterbox_opt.streaming import ChunkQueue, SpeechStream

CPU = torch.device("cpu")
CONTROL = SPEECH_CODES + 3  # a token without sound


class Recorder:
    """Replaces an utterance's Sound: every token is a sample, and nothing is solved."""

    def __init__(self) -> None:
        self.told: list[int] = []
        self.calls: list[tuple[int, bool]] = []
        self.last = False

    def begin(self, tokens: torch.Tensor, last: bool) -> None:
        certain = tokens if last else tokens[:-LOOKAHEAD]
        self.new, self.last = certain[len(self.told) :], last

    def window(self, mel: None) -> None:
        return None

    def accept(self, wave: None) -> torch.Tensor:
        self.told += self.new.tolist()
        self.calls.append((len(self.new), self.last))
        return self.new.float()


class ScriptedTokens:
    """Replaces a TokenRunner: each step draws `pace()` tokens of every script, after a call of `work`."""

    same_on_any_cores = True  # as TokenRunner has it: its tokens come from a script

    def __init__(self, pace: Callable[[], int], work: Callable[[], None]) -> None:
        self.pace, self.work = pace, work
        self.config = tiny("tts").t3
        self.live: list[SimpleNamespace] = []
        self.free, self.slots = 16, None

    def reserve(self, slots: int, length: int) -> None: ...

    def clear(self) -> None:
        self.live.clear()

    def fits(self, utterance: Utterance) -> bool:
        return True

    def prefill(self, new: Sequence[Utterance]) -> None:
        self.live += [SimpleNamespace(utterance=u, rows=[0, 1]) for u in new]

    def decode(self) -> None:
        self.work()
        for u in (slot.utterance for slot in self.live):
            at, count = len(u.tokens), self.pace()
            u.tokens += u.script[at : at + count]
            if at + count > len(u.script):
                u.stopped = "eos"

    def release(self, gone: Sequence[SimpleNamespace]) -> None:
        self.live = [slot for slot in self.live if slot not in gone]


def scripted_engine(pace: Callable[[], int] = lambda: 1, work: Callable[[], None] = lambda: None) -> Engine:
    no_wav = SimpleNamespace(captured=None, decode=lambda mels, spectra: [])
    return Engine(ScriptedTokens(pace, work), None, no_wav, EngineOptions.exact(), CPU)


def scripted_utterance(script: Sequence[int]) -> Utterance:
    cond = SimpleNamespace(cond_prompt_speech_tokens=torch.zeros(1, 4))
    u = Utterance(torch.zeros(5, dtype=torch.long), cond, voice={}, noise=RequestNoise(CPU, 0))
    u.script, u.sound = script, Recorder()
    return u


def stream_of(engine: Engine, *scripts: Sequence[int], cancel=None, prepare=lambda: None) -> SpeechStream:
    utterances = [scripted_utterance(script) for script in scripts]
    queue = ChunkQueue(ChunkJoiner(len(utterances)), cancel, lambda: ValueError("no sound"))
    how = dict(chunks=chunk_sizes(25, 0), cancel=queue, paused=queue.paused, queued=queue.queued)
    return SpeechStream(engine, queue, Call(utterances, queue, **how, ended=lambda _: queue.end()), prepare)


def one_millisecond() -> None:
    time.sleep(0.001)
