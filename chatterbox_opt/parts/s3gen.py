"""`model.s3gen`: speech tokens to sound, and the measuring of a recording, called as in chatterbox-tts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..audio.io import resample
from ..computing import computing
from ..config import FRAMES_PER_TOKEN, MEL_BINS, S3_RATE, S3GEN_RATE
from ..engine.chunks import LOOKAHEAD, whole_tokens
from ..engine.mel import MelJob
from ..engine.noise import RequestNoise
from ..engine.wav import FADE, fade_in
from ..models.mel import prompt_mel, s3_mel
from ..options import EngineOptions
from ..pipeline import Pipeline
from ..voice import detached_copy
from ..voice_preparer import VoicePreparer
from ..weights import layout
from ..weights.keymap import current_names
from ..weights.load import build_s3gen
from .convert import own_s3gen
from .part import Part, Unmoved, sorted_out
from .within import current

if TYPE_CHECKING:
    from typing_extensions import Self

FRAMES_PER_ID = 4  # of the speech tokenizer's mel
SHORTEST_SECONDS = 0.05  # of a recording: in fewer than three frames a speaker's features have no deviation, but NaN


class S3GenPart(Part):
    named, called = "s3gen", ("inference",)
    ignore_state_dict_missing = layout.COMPUTED

    def __init__(self, pipeline: Pipeline, voices: VoicePreparer) -> None:
        self.pipeline, self.voices, self.device = pipeline, voices, pipeline.device
        self.tokenizer = SpeechTokenizerPart(voices)

    @property
    def place(self) -> Any:
        return self.pipeline

    @property
    def network(self) -> Any:
        return self.pipeline.s3gen if self._kept is None else self._kept

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32  # of what goes in and comes out

    @property
    def meanflow(self) -> bool:
        return self.network.flow.config.meanflow

    @property
    def trim_fade(self) -> Tensor:
        """(960,): what inference() multiplies the first 40 ms of a wave by, and hift_inference() does not."""
        return fade_in(torch.ones(2 * FADE, device=self.device))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("model.s3gen(...) is a step of training, which this model does not do; inference() makes sound")

    # ---- sound -------------------------------------------------------------------------------------

    def inference(
        self, speech_tokens: Tensor, ref_wav: Any = None, ref_sr: int | None = None,
        ref_dict: dict[str, Any] | None = None, drop_invalid_tokens: bool = True, n_cfm_timesteps: int | None = None,
        speech_token_lens: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Returns the (1, N) wave of speech tokens (n,) or (1, n), without a watermark, and None in place of the source
        signal, which hift_inference() returns. The voice is `ref_dict`, or that of a recording."""
        del drop_invalid_tokens  # ignored by chatterbox-tts too
        tokens = _one_row(speech_tokens, speech_token_lens)
        voice = self._voice(ref_wav, ref_sr, ref_dict)
        call = current()
        wave = self.pipeline.render(
            [tokens], voice, None, noise=call.noise, steps=n_cfm_timesteps, cancel=call.cancel
        )
        return wave.to(self.device), None

    def flow_inference(
        self, speech_tokens: Tensor, ref_wav: Any = None, ref_sr: int | None = None,
        ref_dict: dict[str, Any] | None = None, n_cfm_timesteps: int | None = None, finalize: bool = False,
        speech_token_lens: Tensor | None = None,
    ) -> Tensor:
        """Returns the (1, 80, 2 n) mel of speech tokens (n,) or (1, n). Unless `finalize` the last three are looked at,
        as the first of what follows, and have no mel; chatterbox-tts 0.1.7 fails there."""
        tokens = _one_row(speech_tokens, speech_token_lens)
        voice = self._voice(ref_wav, ref_sr, ref_dict)
        with self._alone() as noise:
            job = MelJob(tokens, voice if finalize else whole_tokens(voice), noise, n_cfm_timesteps)
            mel = self.pipeline.mel.render([job], n_cfm_timesteps)[0].cpu()
        return (mel if finalize else mel[:, : -FRAMES_PER_TOKEN * LOOKAHEAD])[None].to(self.device)

    def hift_inference(self, speech_feat: Tensor, cache_source: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the (1, 480 T) wave of a mel (1, 80, T) and its source signal (1, 1, 480 T), which begins with
        `cache_source` (1, 1, n)."""
        if speech_feat.ndim != 3 or len(speech_feat) != 1 or speech_feat.shape[1] != MEL_BINS:
            raise ValueError(f"speech_feat has shape {tuple(speech_feat.shape)}: (1, {MEL_BINS}, frames) is needed")
        mel = speech_feat[0].to(self.device, torch.float32)
        before = mel.new_zeros(0) if cache_source is None else cache_source.to(mel).reshape(-1)
        with self._alone() as noise:
            wave, source = (made.cpu() for made in self.pipeline.wav.continued(mel, noise, before))
        return wave[None].to(self.device), source[None, None].to(self.device)

    @contextmanager
    def _alone(self) -> Iterator[RequestNoise]:
        """Inside, between two steps of the engine, a mel or a wave may be made. It is taken out over the host, as a GPU
        may use its memory again for the engine."""
        self.check_in_use()
        with self.pipeline.engine.between_steps():
            given = current().noise
            noise = given or RequestNoise(self.device, None)
            try:
                yield noise
            finally:
                if given is None:
                    noise.give_back()

    # ---- a recording -------------------------------------------------------------------------------

    def mel_extractor(self, wav: Tensor) -> Tensor:
        """(1, N) at 24 kHz -> (1, 80, N // 480)."""
        return prompt_mel(_samples(wav, self.device))[None]

    def embed_ref(
        self, ref_wav: Any, ref_sr: int, device: Any = "auto", ref_fade_out: bool = True
    ) -> dict[str, Any]:
        """Returns what S3Gen needs of a voice, from (N,) or (1, N) samples, all of which are used."""
        del ref_fade_out  # ignored by chatterbox-tts too
        self.check_in_use()
        with self.voices.ready(), torch.inference_mode():
            wav = _samples(ref_wav, self.device)
            if len(wav) < SHORTEST_SECONDS * ref_sr:
                raise ValueError(f"ref_wav: {len(wav) / ref_sr:.3f} s is too short for a voice; at least "
                                 f"{SHORTEST_SECONDS} s is needed, and 6 to 10 s of clean speech is best")
            gen, _ = self.voices.sound_half(resample(wav, ref_sr, S3GEN_RATE), resample(wav, ref_sr, S3_RATE))
        place = self.device if device in ("auto", "mlx") else device
        return {name: value.to(place) if torch.is_tensor(value) else value for name, value in gen.items()}

    def _voice(self, ref_wav: Any, ref_sr: int | None, ref_dict: dict[str, Any] | None) -> dict[str, Any]:
        if (ref_wav is None) == (ref_dict is None):
            raise AssertionError("give either ref_wav with ref_sr, or ref_dict")
        self.check_in_use()
        if ref_dict is None:
            if not ref_sr:
                raise ValueError(f"ref_sr={ref_sr!r}: the sampling rate of ref_wav, in Hz, is needed")
            return self.embed_ref(ref_wav, ref_sr)
        return {name: value if value is None else torch.as_tensor(value) for name, value in ref_dict.items()}

    # ---- weights -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        raise RuntimeError("model.s3gen.state_dict(): its weights are kept fused, which cannot be undone; the "
                           "checkpoint's file has them")

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        """As Part's. Missing weights cannot stay as they are, except those that are computed."""
        self.check_in_use()
        config = self.pipeline.config.with_meanflow(layout.MEANFLOW_KEY in state_dict)
        wanted = layout.s3gen(config)
        state, found = sorted_out(current_names(state_dict), wanted, layout.spare_in_s3gen, strict, self.named)
        if found.missing_keys:
            raise RuntimeError(f"model.s3gen.load_state_dict(): {len(found.missing_keys)} keys are missing, the first "
                               f"{found.missing_keys[0]}; S3Gen is loaded as a whole")
        with computing(self.device):
            self.take(build_s3gen(state, config, self.device))
        return found

    def take(self, network: Any) -> None:
        with computing(self.device):
            network = own_s3gen(network, self.pipeline.config, self.device, self.pipeline.options)
        if network is not None and not self.stands(network):
            self.pipeline.use(s3gen=network)
            self.voices.use(s3gen=network)

    def again(self) -> Self:
        return type(self)(self.pipeline, self.voices)

    def lent(self, options: EngineOptions | None, device: torch.device) -> Any:
        if self.pipeline.options != options or self.device != device:
            raise ValueError("model.s3gen of another model has its form from that model's options: load both with the "
                             "same ones, or load_state_dict() of its file")
        return self.network


class SpeechTokenizerPart(Unmoved):
    """`model.s3gen.tokenizer`: recordings at 16 kHz to speech tokens."""

    def __init__(self, voices: VoicePreparer) -> None:
        self.voices = voices

    def __call__(
        self, wavs: Tensor | Sequence[Any], accelerator: Any = None, max_len: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, N), or a list of (N,) or (1, N) -> tokens (B, n), padded with zeros, and the number of each, (B,)."""
        del accelerator
        voices = self.voices
        with voices.ready(), torch.inference_mode():
            mels = [s3_mel(_samples(wav, voices.device)) for wav in wavs]
            ids = voices.tokenizer([mel[:, : max_len and FRAMES_PER_ID * max_len] for mel in mels], voices.memory)
            lengths = torch.tensor([len(row) for row in ids], device=voices.device)
            return detached_copy(pad_sequence(list(ids), batch_first=True)), detached_copy(lengths)

    forward = __call__

    @property
    def device(self) -> torch.device:
        return self.voices.device

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.voices.tokenizer, name)


def _samples(wav: Any, device: torch.device) -> Tensor:
    """(N,) or (1, N) -> (N,) float32 on the device."""
    wav = torch.as_tensor(wav)
    if wav.ndim not in (1, 2) or (wav.ndim == 2 and len(wav) != 1):
        raise ValueError(f"a recording has shape {tuple(wav.shape)}: (N,) or (1, N) samples are needed")
    return wav.reshape(-1).to(device, torch.float32)


def _one_row(tokens: Any, lengths: Any) -> Tensor:
    """(n,) or (1, n) -> (n,), the first of it if there is a length."""
    rows = torch.atleast_2d(torch.as_tensor(tokens))
    if rows.ndim != 2 or len(rows) != 1:
        raise ValueError(f"speech_tokens has shape {tuple(rows.shape)}: one row, (n,) or (1, n), is needed")
    return rows[0, : None if lengths is None else int(torch.as_tensor(lengths).reshape(-1)[0])].long()
