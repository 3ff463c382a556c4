"""Voice conversion: wav -> speech tokens -> mel -> wav in another voice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .audio.io import read, resample
from .audio.watermark import Watermarker
from .checks import check_seed, check_steps, check_watchers, is_recording
from .computing import computing
from .config import MODELS, S3_RATE, S3GEN_RATE, TOKEN_RATE, ModelConfig
from .device_lock import device_lock
from .engine.chunks import whole_tokens
from .engine.resolve import indexed, is_mlx
from .loading import LoadedModel, load_parts
from .options import EngineOptions
from .parts.by_parts import through_parts
from .parts.convert import own_s3gen
from .parts.model import WithDecoder
from .parts.s3gen import S3GenPart
from .pipeline import Pipeline, given
from .speech import Piece, Speech
from .switches import OF_CONVERTERS, fetch_decoder, random_decoder, ready, resolve_switches, switch_options
from .voice import load_sound_half
from .voice_preparer import VoicePreparer
from .voiced import MissingVoice
from .weights import hub
from .weights.files import REPOS
from .weights.random_init import random_folder
from .whole_speech import WholeSpeech

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .keywords import ConverterKeywords, ModelKeywords

REPO_ID = REPOS["vc"]
PIECE = 20.0  # s of input converted at a time: the flow's attention is quadratic in length
OVERLAP = 0.2  # s of audio rendered twice, and cross-faded, where two pieces meet


class OptimizedChatterboxVC(WithDecoder, LoadedModel):
    ENC_COND_LEN = 6 * S3_RATE
    DEC_COND_LEN = 10 * S3GEN_RATE

    def __init__(
        self,
        s3gen: Any,
        device: str | torch.device,
        ref_dict: dict | None = None,
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
        self.config = config or MODELS["tts"]
        asked = (engine, enable_compilation, use_mixed_precision, attention, quantize, preset)
        switches = switch_options(device, self.config, *asked)
        self.options = resolve_switches(device, self.config, switches, preset)
        self.watermarker = Watermarker(place) if enable_watermark else None
        with computing(place):
            s3gen = own_s3gen(s3gen, self.config, place, self.options)
        self.voices = VoicePreparer(self.config, None, s3gen, place, self.options.resampler)
        runs_on = device if is_mlx(device) else place
        self.pipeline = Pipeline(self.config, None, s3gen, None, runs_on, self.options)
        self._s3gen = S3GenPart(self.pipeline, self.voices)
        # detached: those of chatterbox-tts hold an autograd graph
        self.ref_dict = ref_dict and {k: v.detach().to(place) if torch.is_tensor(v) else v for k, v in ref_dict.items()}

    @classmethod
    def from_pretrained(
        cls, device: str | torch.device, *, repo_id: str | None = None, revision: str | None = None,
        **options: Unpack[ConverterKeywords],
    ) -> Self:
        device, keywords = ready(device, "tts", options, OF_CONVERTERS), fetch_decoder("vc", options)
        return cls.from_local(hub.download("vc", repo_id=repo_id, revision=revision), device, **keywords)

    @classmethod
    def from_local(
        cls, ckpt_dir: str | Path, device: str | torch.device, *, decoder: str | Path | None = None,
        **options: Unpack[ModelKeywords],
    ) -> Self:
        device = ready(device, "tts", options, OF_CONVERTERS)
        with computing(indexed(device)):
            parts, keywords = load_parts(ckpt_dir, device, "vc", options, decoder=decoder)
            ref_dict = load_sound_half(parts.conds_file) if parts.conds_file else None
            return cls(parts.s3gen, device, ref_dict, **keywords)

    @classmethod
    def from_random(
        cls, device: Any = "cpu", size: str = "tiny", seed: int = 0, **options: Unpack[ConverterKeywords]
    ) -> Self:
        with random_folder("tts", size, seed, random_decoder(options)) as folder:
            return cls.from_local(folder, device, **options)

    def set_target_voice(self, wav_fpath: Any, *, sample_rate: int | None = None) -> None:
        """Sets the target: a recording, a saved voice, or a result of a model's prepare_voice()."""
        self.ref_dict = self.voices.prompt(wav_fpath, sample_rate=sample_rate)

    @torch.inference_mode()
    def generate(
        self,
        audio: Any,
        target_voice_path: Any = None,
        *,
        sample_rate: int | None = None,
        seed: int | None = None,
        n_cfm_timesteps: int | None = None,
        cancel: Any = None,
    ) -> Tensor:
        """Returns the recording `audio` (a path, or samples with their `sample_rate`) in the target voice: (1, N)
        float32 on the CPU at `self.sr` Hz. A `target_voice_path` becomes the target of later calls too."""
        return self.speak(
            audio, target_voice_path, sample_rate=sample_rate, seed=seed, n_cfm_timesteps=n_cfm_timesteps, cancel=cancel
        ).wav

    @torch.inference_mode()
    def speak(
        self,
        audio: Any,
        target_voice_path: Any = None,
        *,
        sample_rate: int | None = None,
        seed: int | None = None,
        n_cfm_timesteps: int | None = None,
        cancel: Any = None,
    ) -> Speech:
        """As generate(), but returns a Speech, of one piece without text."""
        voice = self.ref_dict
        if is_recording(target_voice_path):
            # not read back below: another thread may have set ref_dict since
            voice = self.ref_dict = self.voices.prompt(target_voice_path)
        if voice is None:
            raise MissingVoice("Please `set_target_voice` first or specify `target_voice_path`")
        check_steps(n_cfm_timesteps)
        check_watchers(cancel, None)
        with device_lock(self.voices.device):
            tokens = self.tokens(audio, sample_rate).cpu()
        parts, seed = overlapping(tokens), check_seed(seed)
        voice = voice if len(parts) == 1 else whole_tokens(voice)
        if self.s3gen.replaces("inference"):
            utterances = given(parts, voice, n_cfm_timesteps)
            sink = WholeSpeech([utterances], self._mark(), cross_faded)
            with computing(self.pipeline.device):
                through_parts(None, self.s3gen, utterances, seed, sink, cancel)
            wav = sink.waves[0]
        else:
            wav = self.pipeline.render(
                parts, voice, seed, steps=n_cfm_timesteps, joined=cross_faded, watermark=self._mark(), cancel=cancel
            )
        piece = Piece("", (0, 0), (0, wav.shape[-1]), tokens, "given")
        return Speech(wav, [tokens], ["given"], pieces=[piece])

    def tokens(self, audio: Any, sample_rate: int | None = None) -> Tensor:
        """Returns (n,) speech tokens of a recording of any length."""
        wav, rate = read(audio, sample_rate)
        with self.voices.ready():
            wav = resample(wav.to(self.voices.device), rate, S3_RATE, self.voices.exact, sharp=True)
            return self.voices.speech_tokens(wav)


def overlapping(tokens: Tensor) -> list[Tensor]:
    """Returns the tokens as one part, as upstream, or in overlapping parts if they are longer than PIECE."""
    size, lap = int(PIECE * TOKEN_RATE), int(OVERLAP * TOKEN_RATE)
    if len(tokens) <= size:
        return [tokens]
    return [tokens[start : start + size] for start in range(0, len(tokens) - lap, size - lap)]


def cross_faded(parts: Sequence[Tensor]) -> Tensor:
    """Returns (N,) of waves each of which begins with the last OVERLAP seconds of the one before."""
    out, *rest = parts
    n = int(OVERLAP * S3GEN_RATE)
    ramp = torch.linspace(0, 1, n, device=out.device, dtype=out.dtype)
    for wave in rest:
        out = torch.cat([out[:-n], out[-n:] * (1 - ramp) + wave[:n] * ramp, wave[n:]])
    return out


ChatterboxVC = OptimizedChatterboxVC
