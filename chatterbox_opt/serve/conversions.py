"""A recording spoken again in another voice: the model's decoder without its T3."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np

from .errors import ApiError, told
from .recordings import check_recording

MOST_AT_ONCE = 4  # in hand or waiting; the flow of one fills the device


class Converter:
    def __init__(self, model: Any) -> None:
        self.model = model
        self.pool = ThreadPoolExecutor(1, "serve-convert")
        self.waiting = 0
        self._vc: Any = None

    def check(self) -> None:
        if not self.model.config.clones:
            raise ApiError(400, "This model cannot convert recordings; one that clones can", code="unsupported")

    def convert(self, recording: BinaryIO, voice: Any, seed: int | None, cancel: threading.Event) -> np.ndarray:
        """(n,) float32. Runs in the pool's thread."""
        check_recording(recording, "file")
        if self._vc is None:
            self._vc = self._built()
        voice = voice if voice is not None else self.model.conds
        try:
            return self._vc.generate(recording, voice, seed=seed, cancel=cancel)[0].numpy()
        except ValueError as error:
            fault = told(error)
            fault.param = fault.param or "file"  # such as one that is too short, which is found when it is decoded
            raise fault from error

    def _built(self) -> Any:
        """The model's own networks behind another front door: nothing is loaded twice."""
        from ..vc import OptimizedChatterboxVC

        model = self.model
        return OptimizedChatterboxVC(
            model.s3gen, model.device, config=model.config, enable_watermark=model.watermarker is not None,
            engine=model.options,
        )

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)
