"""Voice conversion: wav -> speech tokens -> mel -> wav in another voice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .audio.io import read, resample
from .audio.watermark import Watermarker, mark
from .base import MissingVoice, pretrained_folder
from .checks import check_seed, check_steps, given, usable_device
from .config import MODELS, S3_RATE, S3GEN_RATE, ModelConfig
from .engine.noise import RequestNoise
from .options import EngineOptions
from .pipeline import Pipeline
from .presets import choose_decoder
from .switches import fetch_decoder, random_decoder, settle, toggles
from .voice import Conditionals, VoicePreparer, settled
from .weights.files import REPOS, has_meanflow
from .weights.load import load_folder
from .weights.random_init import random_folder

REPO_ID = REPOS["vc"]
PIECE = 20.0  # s of input converted at a time: the flow's attention is quadratic in length
OVERLAP = 0.2  # s of audio rendered twice and cross-faded where two pieces meet


class OptimizedChatterboxVC:
    ENC_COND_LEN = 6 * S3_RATE
    DEC_COND_LEN = 10 * S3GEN_RATE

    def __init__(
        self,
        s3gen: Any,
        device: str | torch.device,
        ref_dict: dict | None = None,
        *,
        config: ModelConfig | None = None,
        enable_watermark: bool = True,
        engine: EngineOptions | None = None,
        preset: str | None = None,
        **switches: Any,
    ) -> None:
        self.sr = S3GEN_RATE
        self.s3gen, self.device = s3gen, device
        self.config = config or MODELS["tts"]
        asked = toggles(device, self.config.flow.meanflow, engine, preset=preset, **switches)
        self.options = settle(device, self.config, asked, preset)
        self.watermarker = Watermarker(torch.device(device)) if enable_watermark else None
        self.voices = VoicePreparer(self.config, None, s3gen, torch.device(device), self.options.resampler)
        self.pipeline = Pipeline(self.config, None, s3gen, None, torch.device(device), self.options)
        self.ref_dict = ref_dict and {k: v.to(device) if torch.is_tensor(v) else v for k, v in ref_dict.items()}

    def warmup(self, *, n_cfm_timesteps: int | None = None) -> None:
        """Do now what the first request would otherwise wait for."""
        self.pipeline.warmup(1, n_cfm_timesteps)

    @classmethod
    def from_pretrained(
        cls, device: str | torch.device, *, repo_id: str | None = None, revision: str | None = None, **options: Any
    ) -> OptimizedChatterboxVC:
        options = fetch_decoder("vc", options)
        return cls.from_local(pretrained_folder("vc", repo_id=repo_id, revision=revision), device, **options)

    @classmethod
    def from_local(
        cls, ckpt_dir: str | Path, device: str | torch.device, *, decoder: str | Path | None = None, **options: Any
    ) -> OptimizedChatterboxVC:
        device = usable_device(device)
        decoder = choose_decoder(options.get("preset"), decoder, has_meanflow(ckpt_dir))
        parts = load_folder(ckpt_dir, "vc", torch.device(device), torch.float32, decoder=decoder)
        ref_dict = Conditionals.load(parts.conds_file).gen if parts.conds_file else None
        return cls(parts.s3gen, device, ref_dict, config=parts.config, **options)

    @classmethod
    def from_random(
        cls, device: Any = "cpu", size: str = "tiny", seed: int = 0, **options: Any
    ) -> OptimizedChatterboxVC:
        with random_folder("tts", size, seed, random_decoder(options)) as folder:
            return cls.from_local(folder, device, **options)

    def set_target_voice(self, wav_fpath: Any, *, sample_rate: int | None = None) -> None:
        """A recording, a saved voice, or what a model's prepare_voice() made."""
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
        """A path, or samples with their `sample_rate`, in the target voice: (1, N) float32 on the CPU."""
        voice = self.ref_dict
        if given(target_voice_path):
            voice = self.ref_dict = self.voices.prompt(target_voice_path)  # not read back: threads take turns there
        if voice is None:
            raise MissingVoice("Please `set_target_voice` first or specify `target_voice_path`")
        check_steps(n_cfm_timesteps)
        noise = RequestNoise(torch.device(self.device), check_seed(seed))
        wav = self._render(self.tokens(audio, sample_rate), voice, noise, n_cfm_timesteps, cancel)
        (wav,) = mark(self.watermarker, [wav])
        return settled(wav.float(), "cpu").unsqueeze(0)

    def tokens(self, audio: Any, sample_rate: int | None = None) -> Tensor:
        """(n,) speech tokens of a recording of any length."""
        wav, rate = read(audio, sample_rate)
        wav = resample(wav.to(self.device), rate, S3_RATE, exact=self.options.resampler == "exact")
        return self.voices.speech_tokens(wav)

    def _render(self, tokens: Tensor, voice: dict, noise: RequestNoise, steps: int | None, cancel: Any) -> Tensor:
        """Up to PIECE in one go, as upstream does; longer input in overlapping pieces, cross-faded."""
        size, lap = int(PIECE * 25), int(OVERLAP * 25)
        if len(tokens) <= size:
            return self.pipeline.render([tokens], [voice], [noise], steps, cancel=cancel)[0]
        out = None
        for start in range(0, len(tokens) - lap, size - lap):
            (wav,) = self.pipeline.render([tokens[start : start + size]], [voice], [noise], steps, cancel=cancel)
            out = wav if out is None else cross_fade(out, wav, int(OVERLAP * self.sr))
        return out


def cross_fade(a: Tensor, b: Tensor, n: int) -> Tensor:
    """The end of `a` and the start of `b` are the same n samples, rendered twice."""
    ramp = torch.linspace(0, 1, n, device=a.device, dtype=a.dtype)
    return torch.cat([a[:-n], a[-n:] * (1 - ramp) + b[:n] * ramp, b[n:]])


ChatterboxVC = OptimizedChatterboxVC
