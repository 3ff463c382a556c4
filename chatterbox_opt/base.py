"""What the text-to-speech classes share: loading, voices, batches, streams, and the single stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .audio.watermark import Watermarker
from .calls import MAX_CHARS, GenerateOptions
from .checks import (
    check_exaggeration,
    check_first_chunk,
    check_loudness,
    check_seed,
    check_steps,
    check_watchers,
    one_per_text,
    unknown_argument,
)
from .computing import computing
from .config import MODELS, S3_RATE, S3GEN_RATE, ModelConfig
from .engine.resolve import indexed, is_mlx
from .executor import voice_encoder
from .keywords import of_calls
from .loading import LoadedModel, load_parts
from .marks import marked
from .options import EngineOptions, SamplingOptions
from .parts.by_parts import through_parts
from .parts.convert import own_s3gen, own_t3, own_voice_encoder
from .parts.model import WithParts
from .parts.s3gen import S3GenPart
from .parts.t3 import T3Part
from .parts.voice_encoder import VoiceEncoderPart
from .pipeline import Job, NoSpeech, Pipeline, Speech
from .progress import ProgressBar, progress_bar
from .speech import Align
from .streaming import SpeechStream
from .switches import random_decoder, ready, resolve_switches, switch_options
from .text.reading import Reading
from .text.tokenizer import load_tokenizer
from .voice import AnyVoice, Conditionals
from .voice_preparer import VoicePreparer
from .voiced import Voiced
from .weights.random_init import random_folder
from .whole_speech import WholeSpeech

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .keywords import BatchKeywords, CallKeywords, LoadKeywords, TextKeywords, TextsKeywords

__all__ = ["MAX_CHARS", "Speaker"]

ELSEWHERE = {  # arguments that some methods do not take, and who does
    **dict.fromkeys(("takes", "score", "retries"), "for whole speech: generate(), generate_batch(), speak() take it"),
    "norm_loudness": "of a recording: prepare_voice() takes it and makes a voice",
    "first_chunk": "of a stream: generate_stream() and submit() take it",
}
PLURALS = {"seed": "seeds", "voice": "voices", "audio_prompt_path": "voices", "language_id": "language_ids"}


class Speaker(WithParts, Voiced, LoadedModel):
    """A loaded model. The constructor keeps upstream's order; everything new is keyword-only."""

    family = "tts"
    defaults = SamplingOptions()
    ENC_COND_LEN = 6 * S3_RATE
    DEC_COND_LEN = 10 * S3GEN_RATE

    def __init__(
        self,
        t3: Any,
        s3gen: Any,
        ve: Any,
        tokenizer: Any,
        device: str | torch.device,
        conds: Conditionals | None = None,
        *,
        config: ModelConfig | None = None,
        enable_compilation: bool = True,
        use_mixed_precision: bool = True,
        enable_watermark: bool = True,
        attention: str | None = None,
        quantize: str | None = None,
        engine: EngineOptions | None = None,
        preset: str | None = None,
    ) -> None:
        self.sr = S3GEN_RATE
        self.device, place = device, indexed(device)
        self.config = config or MODELS[self.family]
        self.conds = conds.to(place) if conds is not None else None
        asked = (engine, enable_compilation, use_mixed_precision, attention, quantize, preset)
        self.options = resolve_switches(device, self.config, switch_options(device, self.config, *asked), preset)
        self.watermarker = Watermarker(place) if enable_watermark else None
        runs_on = device if is_mlx(device) else place
        with computing(place):
            t3 = own_t3(t3, self.config, runs_on, self.options)
            s3gen = own_s3gen(s3gen, self.config, place, self.options)
            ve = own_voice_encoder(ve, self.config, place)
        self.voices = VoicePreparer(
            self.config, voice_encoder(ve, self.config, runs_on), s3gen, place, self.options.resampler
        )
        self.pipeline = Pipeline(self.config, t3, s3gen, tokenizer, runs_on, self.options)
        self._t3, self._s3gen = T3Part(self.pipeline), S3GenPart(self.pipeline, self.voices)
        self._ve = VoiceEncoderPart(ve, self.config, self.voices, runs_on)

    # ---- where a model comes from ----------------------------------------------------------------

    @classmethod
    def _load(
        cls,
        folder: str | Path,
        device: Any,
        family: str,
        t3_file: str | None = None,
        decoder: str | Path | None = None,
        cache_packed: bool | str | Path = False,
        **options: Any,
    ) -> Self:
        device = ready(device, family, options)
        with computing(indexed(device)):
            parts, keywords = load_parts(folder, device, family, options, t3_file, decoder, cache_packed)
            conds = Conditionals.load(parts.conds_file, map_location="cpu") if parts.conds_file else None
            if conds is not None:
                conds.check(parts.config, parts.conds_file)
            tokenizer = load_tokenizer(folder, parts.config)
            return cls(parts.t3, parts.s3gen, parts.ve, tokenizer, device, conds, **keywords)

    @classmethod
    def from_random(
        cls, device: Any = "cpu", size: str = "tiny", seed: int = 0, family: str | None = None,
        **options: Unpack[LoadKeywords],
    ) -> Self:
        """Returns a model with seeded random weights, for tests and timings: its speech is noise."""
        if options.get("cache_packed"):
            raise ValueError("from_random() makes new files each time, which no cache knows: leave out cache_packed")
        with random_folder(family or cls.family, size, seed, random_decoder(options)) as folder:
            model = cls._load(folder, device, family or cls.family, **options)
            if hasattr(model.tokenizer, "cangjie_converter"):
                model.tokenizer.cangjie_converter.codes()  # read when needed, and the folder goes
            return model

    # ---- speech ----------------------------------------------------------------------------------

    def speak(
        self,
        jobs: Sequence[Job],
        *,
        align: Align | None = None,
        **how: Unpack[CallKeywords],
    ) -> list[Speech]:
        """Returns a Speech per job: the wave, its tokens, and why each piece ended. `align(samples, rate, text)` is
        called for the times of each piece's words; the other keywords are the fields of GenerateOptions."""
        if not isinstance(jobs, Sequence) or not all(isinstance(job, Job) for job in jobs):
            raise TypeError("speak() takes a list of jobs, as jobs(texts) makes them; generate_batch() takes texts")
        speeches = self._speak(jobs, GenerateOptions(**how))
        return speeches if align is None else [speech.align(align) for speech in speeches]

    def _speak(self, jobs: Sequence[Job], options: GenerateOptions) -> list[Speech]:
        with progress_bar(options.verbose, options.progress) as report:
            options = dataclasses.replace(options, progress=report)
            return self.pipeline.speak(jobs, options=options, watermark=self._mark())

    def _one(self, job: Job, options: GenerateOptions) -> Tensor:
        replaced = self.t3.replaces(*self.t3.called) or self.s3gen.replaces(*self.s3gen.called)
        wav = self._by_parts(job, options) if replaced else self._speak([job], options)[0].wav
        if not wav.numel():
            raise NoSpeech(job.text)
        return wav

    def _by_parts(self, job: Job, options: GenerateOptions) -> Tensor:
        if options.selection is not None:
            raise ValueError("takes, score and retries do not go through a method of model.t3 or model.s3gen that was "
                             "replaced; put its own back")
        utterances = self.pipeline.utterances(job, options)
        sink = WholeSpeech([utterances], self._mark(), levels=[job.loudness])
        with progress_bar(options.verbose, options.progress) as report, computing(self.pipeline.device):
            through_parts(self.t3, self.s3gen, utterances, job.seed, sink, options.cancel, report)
        return sink.waves[0]

    def jobs(
        self,
        texts: Sequence[str],
        *,
        voices: Any = None,
        seeds: Any = None,
        language_ids: Any = None,
        exaggeration: Any = None,
        **sampling: Unpack[TextsKeywords],
    ) -> list[Job]:
        """Returns the jobs that speak() takes. Each argument is one value for all texts, or a list with one per text.
        `voices` are results of prepare_voice(), or paths."""
        if isinstance(texts, str):
            raise ValueError("a list of texts is needed; for one text there is generate()")
        if singular := sorted(set(sampling) & set(PLURALS)):
            raise TypeError(f"{singular[0]}: for several texts there is {PLURALS[singular[0]]}=, one value or a list")
        texts = list(texts)
        n = len(texts)
        rows = {name: one_per_text(name, value, n) for name, value in sampling.items()}
        voices, seeds = one_per_text("voices", voices, n), one_per_text("seeds", seeds, n)
        languages = one_per_text("language_ids", language_ids, n)
        exaggeration = one_per_text("exaggeration", exaggeration, n)
        return [
            self._job(text, voices[i], exaggeration[i], seeds[i], languages[i], **{k: v[i] for k, v in rows.items()})
            for i, text in enumerate(texts)
        ]

    def _job(
        self,
        text: str,
        voice: Any,
        exaggeration: float | None,
        seed: int | None,
        language: str | None = None,
        markup: Any = False,
        breath: bool = False,
        loudness: float | None = None,
        spoken: bool | str = False,
        pronounce: Any = None,
        **sampling: Any,
    ) -> Job:
        if not isinstance(text, str):
            raise ValueError(f"text is {type(text).__name__}: a string is needed; generate_batch() takes a list")
        if language and self.config.family != "mtl":
            raise ValueError(f"language_id={language!r}: this model speaks English; the multilingual one takes others")
        unknown = sorted(set(sampling) - set(SamplingOptions.__dataclass_fields__))
        if unknown:
            if unknown[0] in ELSEWHERE:
                raise TypeError(f"{unknown[0]} is {ELSEWHERE[unknown[0]]}")
            raise TypeError(unknown_argument(unknown[0], of_calls()))
        options = dataclasses.replace(self.defaults, **{k: v for k, v in sampling.items() if v is not None})
        reading = Reading.of(
            language if self.config.family == "mtl" else "en", spoken, pronounce, voice, markup
        )
        exaggeration = check_exaggeration(exaggeration)
        manner = marked(text, markup, self.config, self.tokenizer, lambda named: self._voice(named, exaggeration))
        if reading is not None:
            for of_marks in dict.fromkeys((segment.language, segment.voice) for segment in manner[0]):
                reading.steps(*of_marks)  # raises now, and not in the middle of a book
        how = (*manner, bool(breath), check_loudness(loudness), reading)
        return Job(text, self._voice(voice, exaggeration), options, check_seed(seed), language, *how)

    def generate_batch(
        self,
        texts: Sequence[str],
        *,
        voices: Any = None,
        seeds: Any = None,
        language_ids: Any = None,
        **keywords: Unpack[BatchKeywords],
    ) -> list[Tensor]:
        """Returns one (1, N) wave per text, each as it would be alone. Arguments of a text are one value for all texts,
        or a list with one per text; the fields of GenerateOptions hold for the whole call."""
        how, per_text = GenerateOptions.separate(keywords)
        jobs = self.jobs(texts, voices=voices, seeds=seeds, language_ids=language_ids, **per_text)
        return [speech.wav for speech in self.speak(jobs, **how)] if jobs else []

    def generate_stream(
        self,
        text: str,
        *,
        language_id: str | None = None,
        audio_prompt_path: str | Path | None = None,
        voice: AnyVoice | None = None,
        exaggeration: float | None = None,
        seed: int | None = None,
        first_chunk: float = 1.0,
        n_cfm_timesteps: int | None = None,
        max_chars: int | None = MAX_CHARS,
        verbose: bool = False,
        cancel: Any = None,
        progress: Callable[[int, int], None] | None = None,
        **sampling: Unpack[TextKeywords],
    ) -> SpeechStream:
        """Returns an iterator over (1, n) waves, each yielded while the next is computed; joined they are the speech.
        The first has about `first_chunk` seconds, each following one half as long again. Approximate: the tokens equal
        those of generate() at the same seed, but a chunk is rendered with less of the following text to look ahead to.
        Work begins when the first chunk is asked for."""
        check_first_chunk(first_chunk)
        voice = self._voice_or_recording(voice, audio_prompt_path, exaggeration)
        job = self._job(text, voice, exaggeration, seed, language_id, **sampling)
        return self._stream(job, first_chunk, GenerateOptions(n_cfm_timesteps, max_chars, verbose, cancel, progress))

    def submit(
        self,
        text: str,
        *,
        first_chunk: float | None = None,
        language_id: str | None = None,
        audio_prompt_path: str | Path | None = None,
        voice: AnyVoice | None = None,
        exaggeration: float | None = None,
        seed: int | None = None,
        n_cfm_timesteps: int | None = None,
        max_chars: int | None = MAX_CHARS,
        cancel: Any = None,
        progress: Callable[[int, int], None] | None = None,
        **sampling: Unpack[TextKeywords],
    ) -> SpeechStream:
        """As generate_stream(), but begins at once and does not block: for servers, which read it by take() and
        notify(). With `first_chunk` None the speech comes as one chunk, equal to what generate() returns."""
        if first_chunk is not None:
            check_first_chunk(first_chunk)
        voice = self._voice_or_recording(voice, audio_prompt_path, exaggeration)
        job = self._job(text, voice, exaggeration, seed, language_id, **sampling)
        options = GenerateOptions(n_cfm_timesteps, max_chars, cancel=cancel, progress=progress)
        return self._stream(job, first_chunk, options).begin()

    def _stream(self, job: Job, first_chunk: float | None, options: GenerateOptions) -> SpeechStream:
        bar = ProgressBar(options.progress) if options.verbose else None
        options = dataclasses.replace(options, progress=bar or options.progress)
        how: dict[str, Any] = {"ended": bar.close} if bar else {}
        return self.pipeline.stream(job, first_chunk=first_chunk, options=options, watermark=self._mark(), **how)

    # ---- the stages by themselves ----------------------------------------------------------------

    def generate_tokens(
        self,
        text: str,
        *,
        language_id: str | None = None,
        voice: AnyVoice | None = None,
        exaggeration: float | None = None,
        seed: int | None = None,
        verbose: bool = False,
        cancel: Any = None,
        progress: Callable[[int, int], None] | None = None,
        **sampling: Unpack[TextKeywords],
    ) -> Tensor:
        """Returns (n,) speech tokens of a text, spoken as one utterance."""
        check_watchers(cancel, progress)
        job = self._job(text, voice, exaggeration, seed, language_id, **sampling)
        with progress_bar(verbose, progress) as report:
            return self.pipeline.generate_tokens(job, cancel, report)

    def tokens_to_wav(
        self,
        tokens: Tensor,
        voice: AnyVoice | None = None,
        seed: int | None = None,
        *,
        n_cfm_timesteps: int | None = None,
    ) -> Tensor:
        """Returns the (1, N) wave of (n,) speech tokens, with a watermark like all sound."""
        tokens, voice = torch.as_tensor(tokens).long().reshape(-1), self._voice(voice)
        check_steps(n_cfm_timesteps)
        return self.pipeline.render([tokens], voice, check_seed(seed), steps=n_cfm_timesteps, watermark=self._mark())

    # ---- the engine ------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """What all calls together are doing, and have done: utterances and rows being spoken, utterances waiting,
        steps, tokens, and how long the first sound and whole calls took."""
        return self.pipeline.engine.stats()
