"""Recordings that clients bring: looked at before anything is decoded."""

from __future__ import annotations

from typing import BinaryIO

from ..audio.io import describe
from .errors import ApiError

MAX_SECONDS = 600  # of a recording
MAX_RATE = 192_000  # Hz; above it resampling may take a minute and a gigabyte for half a second of sound
MAX_SAMPLES = 60_000_000  # of all its channels: 240 MB when it is decoded, however small the file is


def check_recording(recording: BinaryIO, field: str) -> float:
    """Its seconds; raises before anything is decoded where it is no recording, or a small file of endless sound.
    `field` of the form brought it."""
    try:
        seconds, rate, channels = describe(recording)
    except ValueError as error:
        message = str(error).replace("the open file", "the recording")
        raise ApiError(400, message, param=field, code="invalid_audio") from error
    if seconds > MAX_SECONDS or rate > MAX_RATE or seconds * rate * channels > MAX_SAMPLES:
        message = (
            f"the recording has {seconds:.0f} s at {rate} Hz and {channels} channels; at most {MAX_SECONDS} s, "
            f"{MAX_RATE} Hz and {MAX_SAMPLES} samples are taken"
        )
        raise ApiError(400, message, param=field, code="invalid_audio")
    return seconds
