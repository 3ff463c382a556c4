"""Names that programs import from the modules of chatterbox-tts."""

from __future__ import annotations

from torch import Tensor

from ..config import S3_RATE, S3GEN_RATE, SILENCE_TOKEN, SPEECH_CODES, STOP_SPEECH

S3_SR, S3GEN_SR, S3GEN_SIL = S3_RATE, S3GEN_RATE, SILENCE_TOKEN


def drop_invalid_tokens(tokens: Tensor) -> Tensor:
    """(n,) or (1, n) -> what is sound of it, up to the first end id. A start id in the middle is left out; upstream
    leaves out all before it as well."""
    row = tokens.reshape(-1)
    end = (row == STOP_SPEECH).nonzero()
    row = row[: int(end[0])] if len(end) else row
    row = row[row < SPEECH_CODES]
    return row if tokens.ndim == 1 else row[None]
