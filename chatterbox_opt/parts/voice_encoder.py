"""`model.ve`: recordings to speaker embeddings, called as in chatterbox-tts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..audio.io import resample
from ..computing import computing
from ..config import S3_RATE, ModelConfig
from ..executor import voice_encoder
from ..models.voice_encoder import RATE, TRIM_DB, speaker_embedding
from ..options import EngineOptions
from ..voice_preparer import VoicePreparer
from ..weights import layout
from ..weights.load import build_voice_encoder, unread_of_voice_encoder
from .convert import own_voice_encoder
from .part import Part, sorted_out

if TYPE_CHECKING:
    from typing_extensions import Self


class VoiceEncoderPart(Part):
    named = "ve"

    def __init__(self, network: Any, config: ModelConfig, voices: VoicePreparer, runs_on: Any) -> None:
        self._network, self.config, self.voices, self.runs_on = network, config, voices, runs_on
        self.device = voices.device

    @property
    def place(self) -> Any:
        return self.voices

    @property
    def network(self) -> Any:
        return self._network

    @property
    def dtype(self) -> torch.dtype:
        return self._network.proj.weight.dtype

    def __call__(self, mels: Tensor) -> Tensor:
        """(B, 160, 40) -> (B, 256)."""
        return self._network(mels)

    def embeds_from_wavs(
        self, wavs: Sequence[Any], sample_rate: int, as_spk: bool = False, batch_size: int = 32,
        trim_top_db: float | None = TRIM_DB, rate: float = RATE,
    ) -> np.ndarray:
        """Returns the embeddings (B, 256) of recordings, (N,) each, or one of all of them, (256,), if `as_spk`."""
        del batch_size
        self.check_in_use()
        if trim_top_db not in (None, 0, TRIM_DB) or rate != RATE:
            raise ValueError(f"trim_top_db={trim_top_db!r}, rate={rate!r}: {TRIM_DB} or None, and {RATE}, are possible")
        with self.voices.ready(), torch.inference_mode():
            heard = [torch.as_tensor(np.asarray(wav), dtype=torch.float32).to(self.device) for wav in wavs]
            heard = [resample(wav, sample_rate, S3_RATE, sharp=True) for wav in heard]
            rows = [speaker_embedding(self.voices.ve, wav, trimmed=bool(trim_top_db)) for wav in heard]
            embeddings = torch.cat(rows).float().cpu().numpy()
        return self.utt_to_spk_embed(embeddings) if as_spk else embeddings

    @staticmethod
    def utt_to_spk_embed(utt_embeds: np.ndarray) -> np.ndarray:
        """(B, 256) of one speaker -> (256,), of length 1."""
        mean = np.mean(utt_embeds, axis=0)
        return mean / np.linalg.norm(mean)

    @classmethod
    def voice_similarity(cls, embeds_x: np.ndarray, embeds_y: np.ndarray) -> float:
        """Returns the cosine of two speakers, each (256,) or the (B, 256) of several recordings."""
        x, y = (e if e.ndim == 1 else cls.utt_to_spk_embed(e) for e in (embeds_x, embeds_y))
        return x @ y

    # ---- weights -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Returns its weights, whose names are those of chatterbox-tts, without the two that only training uses."""
        return self._network.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        """As Part's. With strict=False weights that are missing stay as they are."""
        self.check_in_use()
        wanted = layout.voice_encoder(self.config.voice_encoder)
        optional = unread_of_voice_encoder().__contains__
        state, found = sorted_out(state_dict, wanted, optional, strict, self.named)
        with computing(self.device):
            self.take(build_voice_encoder(self.state_dict() | state, self.config, self.device))
        return found

    def again(self) -> Self:
        return type(self)(self._network, self.config, self.voices, self.runs_on)

    def lent(self, options: EngineOptions | None, device: torch.device) -> Any:
        return self._network if self.device == device else self.state_dict()

    def take(self, network: Any) -> None:
        with computing(self.device):
            network = own_voice_encoder(network, self.config, self.device)
            if network is None or self.stands(network):
                return
            self._network = network
            self.voices.use(ve=voice_encoder(self._network, self.config, self.runs_on))
