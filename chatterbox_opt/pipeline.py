"""The page: text -> tokens -> mel -> wav, for one and for many; the watermark last."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .audio.joins import join
from .config import SAMPLES_PER_TOKEN, SILENCE_TOKEN, SPEECH_CODES, START_TEXT, STOP_TEXT, ModelConfig
from .engine.mel import ROWS_AT_ONCE, MelRunner
from .engine.noise import RequestNoise
from .engine.resolve import settle_attention
from .engine.stream import MelStream, Stream, WavStream
from .engine.tokens import TokenRequest, TokenResult, TokenRunner
from .engine.wav import WavRunner
from .options import EngineOptions, SamplingOptions
from .streaming import AHEAD, Narrator, Outlet, chunk_sizes
from .text.normalize import punc_norm
from .text.split import check_max_chars, split
from .voice import Conditionals, settled

logger = logging.getLogger(__name__)


class Cancelled(RuntimeError):
    """Raised by a call whose `cancel` was set; the model stays usable."""


class NoSpeech(ValueError):
    """The model ended an utterance before its first sound."""

    def __init__(self, text: str) -> None:
        super().__init__(
            f"the model ended {text[:40]!r} before its first sound; "
            "try another seed, a longer text or a lower temperature"
        )


@dataclass(frozen=True)
class Job:
    """One text in one voice. `seed` None draws from torch's global generators, as upstream does."""

    text: str
    voice: Conditionals
    sampling: SamplingOptions
    seed: int | None = None
    language: str | None = None


@dataclass
class Speech:
    """What became of a job: the sound, and how it came about."""

    wav: Tensor  # (1, N) float32 on the CPU
    tokens: list[Tensor]  # one (n,) LongTensor a piece
    stops: list[str]  # a piece's reason to end: "eos" | "limit" | "guard"
    seconds: dict[str, float] = field(default_factory=dict)  # wall time of each stage, shared by a batch


@dataclass
class _Piece:
    """One utterance: what fits the model at once. A long job has several."""

    job: int
    request: TokenRequest
    text: str


class Pipeline:
    def __init__(
        self, config: ModelConfig, t3: Any, s3gen: Any, tokenizer: Any, device: torch.device, options: EngineOptions
    ) -> None:
        self.config, self.tokenizer, self.device = config, tokenizer, device
        settle_attention(device)
        self.tokens = TokenRunner(t3, options) if t3 is not None else None
        self.mel = MelRunner(s3gen.flow, options)
        self.wav = WavRunner(s3gen.mel2wav, options)
        self._warm: dict[int | None, int] = {}  # steps of the flow -> utterances side by side

    def warmup(self, batch: int = 1, steps: int | None = None) -> None:
        if self.tokens is not None:
            self.tokens.warmup(batch)
        self._warm.setdefault(self._usual(steps), 0)
        self._warm_sound(batch, steps)

    @property
    def _clicks(self) -> bool:
        """The last token before the end decodes to a click, and is left out of the sound."""
        return self.config.family == "mtl"

    def _usual(self, steps: int | None) -> int | None:
        return None if steps == (self.mel.options.flow_steps or self.config.flow.default_steps) else steps

    def _warm_sound(self, batch: int, steps: int | None) -> None:
        """Of the usual number of steps, and of others that a warm-up has asked for: each takes a hundred captures."""
        steps = self._usual(steps)
        if steps is not None and steps not in self._warm:
            return
        if batch > self._warm.get(steps, 0):
            self.mel.warmup(batch, steps)
            self.wav.warmup(batch)
            self._warm[steps] = batch

    @torch.inference_mode()
    def speak(
        self,
        jobs: Sequence[Job],
        *,
        max_chars: int | None,
        steps: int | None = None,
        watermark: Callable[[list[Tensor]], list[Tensor]] | None = None,
        cancel: Any = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Speech]:
        """`progress` hears of tokens drawn, and of how many there can be at most."""
        seconds: dict[str, float] = {}
        with self._stage("text", seconds):
            pieces = [p for i, job in enumerate(jobs) for p in self._pieces(i, job, len(jobs), max_chars)]
        with self._stage("warmup", seconds):  # of a batch that is larger than any before
            self._warm_sound(len(pieces), steps)
        with self._stage("tokens", seconds):
            results = self._draw(pieces, cancel, progress)
        spoken = [(p, t) for p, r in zip(pieces, results) if len(t := self._audible(r.tokens))]
        wavs = self.render([t for _, t in spoken], [jobs[p.job].voice for p, _ in spoken],
                           [p.request.noise for p, _ in spoken], steps, seconds, cancel) if spoken else []
        if self._clicks:
            wavs = [w[: max(1, len(t) - 1) * SAMPLES_PER_TOKEN] for w, (_, t) in zip(wavs, spoken)]
        by_job: list[list[Tensor]] = [[] for _ in jobs]
        for (piece, _), wav in zip(spoken, wavs):
            by_job[piece.job].append(wav)
        joined = [join(parts) for parts in by_job]
        with self._stage("watermark", seconds):
            sounding = [i for i, w in enumerate(joined) if len(w)]
            if watermark is not None and sounding:
                for i, marked in zip(sounding, watermark([joined[i] for i in sounding])):
                    joined[i] = marked
        return [
            Speech(
                wav=settled(wav.float(), "cpu").unsqueeze(0),
                tokens=[settled(self._audible(r.tokens), "cpu") for p, r in zip(pieces, results) if p.job == i],
                stops=[r.stopped for p, r in zip(pieces, results) if p.job == i],
                seconds=dict(seconds),
            )
            for i, wav in enumerate(joined)
        ]

    def stream(
        self,
        job: Job,
        *,
        first: int,
        max_chars: int | None,
        steps: int | None = None,
        watermark: Callable[[list[Tensor]], list[Tensor]] | None = None,
    ) -> Callable[..., None]:
        """What is wrong is told at once; what comes back speaks, called with (emit, cancel, progress). It emits (1, N)
        waves while the rest is being made, the first of about `first` tokens. The tokens are those that speak() draws;
        the sound is made with less to look ahead to."""
        pieces = self._pieces(0, job, 1, max_chars)
        for piece in pieces:
            self.tokens.check(piece.request)
        return partial(self._stream, pieces, job, first, steps, watermark)

    @torch.inference_mode()
    def _stream(
        self, pieces: list[_Piece], job: Job, first: int, steps: int | None, watermark: Any,
        emit: Callable[[Tensor], None], cancel: Any = None, progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._warm_sound(1, steps)
        outlet = Outlet(watermark, lambda wave: emit(settled(wave.float(), "cpu").unsqueeze(0)), len(pieces))
        sizes = None
        ceiling, done = _ceiling(pieces), 0
        for i in range(0, len(pieces), AHEAD):
            group = pieces[i : i + AHEAD]
            live = [self._live(piece, job.voice.gen, steps, cancel) for piece in group]
            sizes = sizes or chunk_sizes(first, live[0].hold)
            narrator = Narrator(live, sizes, outlet, self._audible, SAMPLES_PER_TOKEN if self._clicks else 0)
            report = None if progress is None else lambda drawn, _, before=done: progress(before + drawn, ceiling)
            results = self._draw(group, cancel, report, narrator.look)
            done += sum(len(r.tokens) for r in results)
        if not outlet.sounding:
            raise NoSpeech(job.text)

    def _live(self, piece: _Piece, voice: dict, steps: int | None, cancel: Any) -> Stream:
        noise = piece.request.noise.apart()  # the tokens' own draws stay what they are without a stream
        return Stream(MelStream(self.mel, voice, noise, steps, partial(_check, cancel)), WavStream(self.wav, noise))

    @torch.inference_mode()
    def draw(self, job: Job, cancel: Any = None, progress: Callable[[int, int], None] | None = None) -> Tensor:
        """Speech tokens of one utterance, as they would be rendered."""
        (piece,) = self._pieces(0, job, 1, None)
        return settled(self._audible(self._draw([piece], cancel, progress)[0].tokens), "cpu")

    @torch.inference_mode()
    def render(
        self,
        tokens: Sequence[Tensor],
        voices: Sequence[Conditionals | dict],
        noises: Sequence[RequestNoise],
        steps: int | None = None,
        seconds: dict[str, float] | None = None,
        cancel: Any = None,
    ) -> list[Tensor]:
        """Speech tokens -> (N,) waves on the model's device."""
        seconds = {} if seconds is None else seconds
        prompts = [v if isinstance(v, dict) else v.gen for v in voices]
        self._warm_sound(len(tokens), steps)
        waves: list[Any] = [None] * len(tokens)
        for group in self._groups([len(t) for t in tokens]):
            given = [tokens[i].to(self.device) for i in group]
            rest = [noises[i] for i in group]
            with self._stage("mel", seconds):
                mels = self.mel.render(given, [prompts[i] for i in group], rest, steps, partial(_check, cancel))
            _check(cancel)
            with self._stage("wav", seconds):
                for i, wave in zip(group, self.wav.render(mels, rest)):
                    waves[i] = wave
        return waves

    def _groups(self, lengths: list[int]) -> list[list[int]]:
        """Utterances of like length, as many as are rendered side by side: noise, mels and spectra of no more than
        these are in memory at once. A CPU renders one by one anyway."""
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        size = 1 if self.device.type == "cpu" else ROWS_AT_ONCE
        return [order[i : i + size] for i in range(0, len(order), size)]

    def _draw(
        self,
        pieces: list[_Piece],
        cancel: Any,
        progress: Callable[[int, int], None] | None = None,
        look: Callable[[list[list[int]], list[TokenResult | None]], None] | None = None,
    ) -> list[TokenResult]:
        _check(cancel)
        ceiling = _ceiling(pieces)

        def watch(drawn: list[list[int]], results: list[TokenResult | None]) -> None:
            if progress is not None:
                progress(sum(map(len, drawn)), ceiling)
            if look is not None:
                look(drawn, results)

        results = self.tokens.generate([p.request for p in pieces], cancel=cancel, watch=watch)
        _check(cancel)
        for piece, result in zip(pieces, results):
            start = piece.text[:40]
            if result.stopped == "limit":
                logger.warning(
                    "speech was cut at max_new_tokens=%d (%.1f s): %r...; raise the limit or split the text",
                    piece.request.sampling.max_new_tokens, piece.request.sampling.max_new_tokens / 25, start,
                )
            elif result.stopped == "guard":
                logger.warning("speech ran away and was stopped after %d tokens: %r...", len(result.tokens), start)
            if not len(self._audible(result.tokens, padded=False)):
                logger.warning("the model ended before its first sound: %r...", start)
        return results

    def _audible(self, tokens: Tensor, padded: bool = True) -> Tensor:
        """Control ids dropped; Turbo ends with a little silence, as upstream's does."""
        tokens = tokens[tokens < SPEECH_CODES]
        if padded and len(tokens) and self.config.t3.is_gpt:
            tokens = torch.cat([tokens, tokens.new_full((3,), SILENCE_TOKEN)])
        return tokens

    def _pieces(self, index: int, job: Job, n_jobs: int, max_chars: int | None) -> list[_Piece]:
        texts = [job.text] if max_chars is None else split(job.text, self._fitting(max_chars))
        alone = n_jobs == len(texts) == 1
        # Rows of one batch may not share a generator: what one draws would shift the other's draws.
        seed = job.seed if job.seed is not None or alone else int(torch.randint(2**62, ()).item())
        pieces = []
        for k, text in enumerate(texts):
            request = TokenRequest(
                text_ids=self.text_ids(text, job.language),
                cond=job.voice.t3,
                sampling=job.sampling,
                noise=RequestNoise(self.device, None if seed is None else (seed + k) % 2**64),
            )
            pieces.append(_Piece(index, request, text))
        return pieces

    def _fitting(self, max_chars: int) -> int:
        check_max_chars(max_chars)
        return min(max_chars, self.config.max_chars or max_chars)

    def text_ids(self, text: str, language: str | None = None) -> Tensor:
        """(T,) ids as T3 reads them. Text of nothing but white space counts as no text at all."""
        text = punc_norm(text if text.strip() else "", self.config.family)
        if self.config.t3.is_gpt:
            return torch.as_tensor(self.tokenizer.encode(text))
        args = (text, language) if self.config.family == "mtl" else (text,)
        ids = self.tokenizer.text_to_tokens(*args).view(-1)
        return torch.cat([ids.new_tensor([START_TEXT]), ids, ids.new_tensor([STOP_TEXT])])

    @contextmanager
    def _stage(self, name: str, seconds: dict[str, float]):
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            # a few a call: nothing beside what they make visible. This stream's alone: another thread's graph may be
            # in the middle of being captured, and does not survive a wait for the whole device
            torch.cuda.current_stream(self.device).synchronize()
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


def _ceiling(pieces: Sequence[_Piece]) -> int:
    return sum(p.request.sampling.max_new_tokens for p in pieces)


def _check(cancel: Any) -> None:
    if cancel is not None and cancel.is_set():
        raise Cancelled("the call was cancelled")

