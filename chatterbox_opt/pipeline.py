"""Text -> utterances -> engine -> sound -> watermark, for one text or many. docs/architecture.md has the picture."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .audio.joins import ChunkJoiner
from .calls import GenerateOptions
from .computing import computing
from .config import S3GEN_RATE, SILENCE_TOKEN, START_TEXT, STOP_TEXT, TOKEN_RATE, ModelConfig
from .engine.captures import captured_parts, in_words
from .engine.chunks import chunk_sizes
from .engine.engine import Engine
from .engine.mel import check_codes
from .engine.noise import RequestNoise
from .engine.request import Call, Cancelled, Utterance
from .engine.resolve import disable_cudnn_attention, indexed
from .engine.seeds import piece_seed
from .engine.shape_caches import bound_shape_caches
from .executor import sound_runners, token_runner
from .options import EngineOptions, SamplingOptions
from .speech import Speech, audible, pieces_of
from .streaming import ChunkQueue, SpeechStream
from .takes import Choice, TakeSelection
from .text.markup import Segment, unescaped, whole
from .text.normalize import punc_norm
from .text.reading import Reading, pieces
from .text.split import breath, spans
from .voice import Conditionals, T3Cond
from .whole_speech import Mark, WholeSpeech

__all__ = ["Cancelled", "Job", "NoSpeech", "Pipeline", "Speech"]
logger = logging.getLogger(__name__)


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
    segments: tuple[Segment, ...] = ()  # with markup= only
    voices: Mapping[str, Conditionals] = field(default_factory=dict)  # by the names that its marks use
    breath: bool = False  # pauses between pieces by punctuation
    loudness: float | None = None  # LUFS of each piece; None: unchanged
    reading: Reading | None = None  # changes to the text before the model reads it


class Pipeline:
    def __init__(
        self, config: ModelConfig, t3: Any, s3gen: Any, tokenizer: Any, device: str | torch.device,
        options: EngineOptions,
    ) -> None:
        self.config, self.tokenizer, self.device, self.options = config, tokenizer, indexed(device), options
        self.t3, self.s3gen, self.runs_on = t3, s3gen, device
        disable_cudnn_attention(self.device)
        bound_shape_caches(self.device)
        with computing(self.device):  # a constructor may be called by a program itself, with networks of its own
            self.tokens = token_runner(t3, options)
            self.mel, self.wav = sound_runners(s3gen, device, options)
            self.engine = Engine(self.tokens, self.mel, self.wav, options, self.device)

    def use(self, t3: Any = None, s3gen: Any = None) -> None:
        """Speaks with another T3 or S3Gen from now on. Calls that have begun are ended first, later ones wait."""
        with self.engine.idle():
            if t3 is not None:
                self.tokens = self.engine.tokens = token_runner(t3, self.options)
                self.t3 = t3
            if s3gen is not None:
                self.mel, self.wav = sound_runners(s3gen, self.runs_on, self.options)
                self.engine.renderer.mel, self.engine.renderer.wav = self.mel, self.wav
                self.s3gen = s3gen

    def warmup(self, batch: int = 1) -> None:
        """Allocates and captures now what `batch` utterances side by side use."""
        with self.engine.idle():
            if self.tokens is not None:
                self.tokens.warmup(batch)
            self.mel.warmup(batch)
            self.wav.warmup(batch)
        for name, captured in captured_parts(self.tokens, self.mel, self.wav).items():
            logger.debug("warm-up for %d utterances: %s: %s", batch, name, in_words(captured))

    # ---- speech ----------------------------------------------------------------------------------

    def speak(
        self,
        jobs: Sequence[Job],
        *,
        options: GenerateOptions,
        watermark: Mark | None = None,
    ) -> list[Speech]:
        start = time.perf_counter()
        per_job = [self.utterances(job, options) for job in jobs]
        cancel, progress = options.cancel, options.progress
        seconds = {"text": time.perf_counter() - start}
        choices: list[list[Choice]] = [[] for _ in jobs]
        sounds: dict[Utterance, Tensor] = {}
        if options.selection is None:
            self._seed(jobs, per_job)
        else:
            selection = TakeSelection(self.engine, options.selection, self.device, cancel, progress)
            per_job, choices = selection.run(jobs, per_job)
            sounds, progress = selection.sounds, None
            seconds |= selection.seconds
        sink = WholeSpeech(per_job, watermark, levels=[job.loudness for job in jobs], sounds=sounds)
        call = Call([u for own in per_job for u in own], sink, cancel=cancel, progress=progress)
        call.delivered = sum(len(sounds[u]) for u in call.utterances if u in sounds) / S3GEN_RATE
        self.engine.run(call)
        for own in per_job:
            _warn(own)
        seconds |= {stage: spent + seconds.get(stage, 0.0) for stage, spent in call.seconds.items()}
        return [
            Speech(
                wav, [audible(u) for u in own], [str(u.stopped) for u in own], dict(seconds),
                pieces=pieces_of(own, [sink.places[u] for u in own]), choices=chosen,
            )
            for wav, own, chosen in zip(sink.waves, per_job, choices)
        ]

    def stream(
        self,
        job: Job,
        *,
        first_chunk: float | None,
        options: GenerateOptions,
        watermark: Mark | None = None,
        ended: Callable[[bool], None] = lambda spoken: None,
    ) -> SpeechStream:
        """Returns a stream whose first chunk has about `first_chunk` seconds; None: one chunk with all of the speech.
        The tokens equal those of speak(); chunks are rendered with less of the following tokens to look ahead to."""
        if first_chunk is not None and job.loudness is not None:
            raise ValueError(f"loudness={job.loudness!r}: of a piece that is still being spoken it is not known; "
                             "use generate(), or submit() with first_chunk=None")
        utterances = self.utterances(job, options)
        joiner = ChunkJoiner(len(utterances), watermark, [u.before for u in utterances], utterances[-1].after)
        queue = ChunkQueue(joiner, options.cancel, lambda: NoSpeech(job.text))

        def at_end(spoken: bool) -> None:
            try:
                _warn(utterances)
                ended(spoken)
            finally:
                queue.end()

        how: dict[str, Any] = dict(
            cancel=queue, progress=options.progress, paused=queue.paused, queued=queue.queued, ended=at_end
        )
        if first_chunk is None:
            sink = WholeSpeech([utterances], watermark, put=queue.put, levels=[job.loudness])
            queue.placed = sink.places.get
            call = Call(utterances, sink, **how)
        else:
            sizes = chunk_sizes(round(first_chunk * TOKEN_RATE), self.wav.hold_tokens)
            call = Call(utterances, queue, chunks=sizes, **how)
        self.engine.check(call)
        return SpeechStream(self.engine, queue, call, lambda: self._seed([job], [utterances]))

    # ---- the stages by themselves ----------------------------------------------------------------

    def draw(
        self, text_ids: Tensor, cond: T3Cond, sampling: SamplingOptions, noise: RequestNoise | None = None,
        cancel: Any = None, progress: Callable[[int, int], None] | None = None,
    ) -> Utterance:
        """Returns an utterance with its tokens, drawn from `noise`, or torch's global generators."""
        utterance = Utterance(text_ids, cond, sampling, noise=noise or RequestNoise(self.device, None))
        self.engine.run(Call([utterance], cancel=cancel, progress=progress))
        return utterance

    def generate_tokens(
        self, job: Job, cancel: Any = None, progress: Callable[[int, int], None] | None = None
    ) -> Tensor:
        """Returns (n,) speech tokens of the job, spoken as one utterance."""
        if job.segments or job.breath or job.loudness is not None:
            raise ValueError("markup, breath and loudness are of sound: speak() takes them, and has the tokens of each "
                             "piece in .tokens")
        (utterance,) = self.utterances(job, GenerateOptions(max_chars=None))
        utterance.voice = None
        self._seed([job], [[utterance]])
        self.engine.run(Call([utterance], cancel=cancel, progress=progress))
        _warn([utterance])
        return audible(utterance)

    def render(
        self,
        parts: Sequence[Tensor],
        voice: Conditionals | dict,
        seed: int | None,
        *,
        noise: RequestNoise | None = None,
        steps: int | None = None,
        joined: Callable[[Sequence[Tensor]], Tensor] | None = None,
        watermark: Mark | None = None,
        cancel: Any = None,
    ) -> Tensor:
        """Renders each part of (n,) speech tokens separately and joins them by `joined` (default: join()). `noise` is
        one part's. Returns (1, N) float32 on the CPU."""
        utterances = given(parts, voice, steps)
        noises = self.noises(seed, len(parts), alone=len(parts) == 1) if noise is None else [noise]
        for utterance, own in zip(utterances, noises, strict=True):
            utterance.noise = own
        sink = WholeSpeech([utterances], watermark, joined)
        self.engine.run(Call(utterances, sink, cancel=cancel))
        return sink.waves[0]

    # ---- text -> utterances ----------------------------------------------------------------------

    def utterances(self, job: Job, options: GenerateOptions) -> list[Utterance]:
        with computing(self.device):
            return self._cut(job, options)

    def _cut(self, job: Job, options: GenerateOptions) -> list[Utterance]:
        limit = options.max_chars
        if limit is not None:
            limit = min(limit, self.config.max_chars or limit)
        found: list[Utterance] = []
        for segment in job.segments or whole(job.text):
            body = job.text[slice(*segment.body)]
            if found and not body:
                found[-1].after, found[-1].chars = segment.before or 0.0, (found[-1].chars[0], segment.chars[1])
                continue
            voice = job.voice if segment.voice is None else job.voices.get(segment.voice, job.voice)
            for text, read, chars, before in self._pieces(job, segment, body, limit):
                found.append(Utterance(
                    text_ids=self.text_ids(read, segment.language or job.language), cond=voice.t3,
                    sampling=job.sampling, voice=voice.gen, steps=options.n_cfm_timesteps, text=text, read=read,
                    chars=chars,
                    before=before if before is not None or not (found and job.breath)
                    else breath(job.text, chars[0], max(chars[0], segment.body[0])),  # behind the marks
                    tail=(SILENCE_TOKEN,) * 3 if self.config.t3.is_gpt else (),  # Turbo ends with a little silence
                    drop_last_token=self.config.family == "mtl",  # it decodes to a click there
                ))
        return found

    def _pieces(
        self, job: Job, segment: Segment, body: str, limit: int | None
    ) -> Iterator[tuple[str, str, tuple[int, int], float | None]]:
        """Yields per piece (text, the same as the model reads it, its characters in the given text, seconds of silence
        before it; None: the usual pause)."""
        shown = unescaped if job.segments else str
        read = job.reading and job.reading.steps(segment.language, segment.voice)
        pairs = pieces(body, limit, lambda text: read(shown(text)) if read else shown(text))
        texts = [text for text, _ in pairs]
        bounds = [segment.chars[0], *(segment.body[0] + start for start, _ in spans(body, texts)[1:]), segment.chars[1]]
        for i, ((text, said), chars) in enumerate(zip(pairs, pairwise(bounds))):
            yield shown(text), said, chars, None if i else segment.before

    def _seed(self, jobs: Sequence[Job], per_job: Sequence[Sequence[Utterance]]) -> None:
        alone = sum(map(len, per_job)) == 1
        for job, own in zip(jobs, per_job):
            for utterance, noise in zip(own, self.noises(job.seed, len(own), alone)):
                utterance.noise = noise

    def noises(self, seed: int | None, count: int, alone: bool) -> list[RequestNoise]:
        """Returns one source per utterance, so that the draws of one do not shift those of another."""
        if seed is None and alone:
            return [RequestNoise(self.device, None)]
        seed = int(torch.randint(2**62, (), device="cpu").item()) if seed is None else seed
        return [RequestNoise(self.device, piece_seed(seed, k)) for k in range(count)]

    def text_ids(self, text: str, language: str | None = None) -> Tensor:
        """Returns (T,) ids for T3. Text that is white space only is treated as empty."""
        text = punc_norm(text if text.strip() else "", self.config.family)
        if self.config.t3.is_gpt:
            return torch.as_tensor(self.tokenizer.encode(text))
        args = (text, language) if self.config.family == "mtl" else (text,)
        ids = self.tokenizer.text_to_tokens(*args).view(-1)
        return torch.cat([ids.new_tensor([START_TEXT]), ids, ids.new_tensor([STOP_TEXT])])


def given(parts: Sequence[Tensor], voice: Conditionals | dict, steps: int | None) -> list[Utterance]:
    """Returns utterances of (n,) speech tokens that are there already."""
    check_codes(parts)
    gen = voice if isinstance(voice, dict) else voice.gen
    return [Utterance(voice=gen, steps=steps, tokens=part.tolist(), stopped="given") for part in parts]


def _warn(utterances: Sequence[Utterance]) -> None:
    for u in utterances:
        start, limit = u.text[:40], u.sampling.max_new_tokens
        if u.stopped == "limit":
            text = "speech was cut at max_new_tokens=%d (%.1f s): %r...; raise the limit or split the text"
            logger.warning(text, limit, limit / TOKEN_RATE, start)
        elif u.stopped == "guard":
            logger.warning("speech ran away and was stopped after %d tokens: %r...", len(u.tokens), start)
        if u.stopped and not u.audible():
            logger.warning("the model ended before its first sound: %r...", start)
