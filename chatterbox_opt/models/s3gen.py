"""What upstream keeps in one file: the speech tokenizer, the x-vector network, the flow and the vocoder."""

from __future__ import annotations

from torch import nn

from ..config import ModelConfig
from .campplus import Campplus
from .flow import Flow
from .hift import Hift
from .s3_tokenizer import S3Tokenizer


class S3Gen(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tokenizer = S3Tokenizer(config.s3_tokenizer)
        self.speaker_encoder = Campplus(config.campplus)
        self.flow = Flow(config.flow)
        self.mel2wav = Hift(config.hift)
