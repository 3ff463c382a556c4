"""Loads a checkpoint folder, and what all loaded models share: a pipeline, a watermark, warmup() and close()."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from .audio.watermark import Watermarker, mark
from .checks import check_batch
from .packing.load import load_any
from .pipeline import Pipeline
from .presets import choose_decoder
from .switches import SWITCHES
from .weights.files import has_meanflow
from .weights.load import Loaded


class LoadedModel:
    """Base of the text-to-speech classes and of voice conversion."""

    pipeline: Pipeline
    watermarker: Watermarker | None

    def warmup(self, batch: int = 1) -> None:
        """Captures graphs, compiles kernels and allocates memory for `batch` utterances side by side, so that the first
        requests do not wait for it."""
        check_batch(batch)
        self.pipeline.warmup(batch)

    def close(self) -> None:
        """Ends all running calls, and the thread of streams. The model cannot be used afterwards."""
        self.pipeline.engine.close()

    def _mark(self) -> Callable[[Sequence[Tensor]], list[Tensor]] | None:
        return partial(mark, self.watermarker) if self.watermarker is not None else None


def load_parts(
    folder: str | Path,
    device: Any,
    family: str,
    options: Mapping[str, Any],
    t3_file: str | None = None,
    decoder: str | Path | None = None,
    cache_packed: bool | str | Path = False,
) -> tuple[Loaded, dict[str, Any]]:
    """Returns (the networks, the constructor's keywords): `options`, with those that a packed checkpoint fixes.
    `cache_packed`: see packing/load.py."""
    decoder = choose_decoder(options.get("preset"), decoder, has_meanflow(folder))
    switches = {name: value for name, value in options.items() if name in SWITCHES}
    others = {name: value for name, value in options.items() if name not in SWITCHES}
    config = options.get("config")
    parts, switches = load_any(folder, family, device, switches, t3_file, decoder, cache_packed, config)
    return parts, others | {"config": parts.config} | switches
