"""The models under examination, loaded when a check asks for them."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engine.resolve import indexed
from ..options import EngineOptions

FAMILIES = {"english": "tts", "multilingual": "mtl", "turbo": "turbo", "nano": "nano"}
TEXTS = (
    "The harbour was quiet that morning.", "Nobody knew why he did it, but everyone had asked him once.",
    "She wrote it down.", "An old man sat on the wall with a cup of coffee.",
)  # fmt: skip
LONG = (
    "The harbour was quiet that morning, and the first boats were already out at sea. An old man sat on the wall "
    "with a cup of coffee, counting the gulls as he had done for years."
)
FLOAT32 = dict(dtype="float32", s3gen_dtype="float32")


class Patient:
    def __init__(self, device: str, names: tuple[str, ...], quick: bool) -> None:
        """`names`: mini, or families, whose weights are random and of full size."""
        self.device, self.names, self.quick = indexed(device), names, quick
        self._models: dict[tuple, Any] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="chatterbox-doctor-")

    def model(self, name: str = "mini", **changes: Any) -> Any:
        """Returns a model, loaded once per set of `changes` to the default options."""
        key = name, tuple(sorted(changes.items()))
        if key not in self._models:
            self._models[key] = self.load(name, **changes)
        return self._models[key]

    def load(self, name: str = "mini", **changes: Any) -> Any:
        from ..mtl_tts import OptimizedChatterboxMultilingualTTS
        from ..tts import OptimizedChatterboxTTS
        from ..tts_turbo import OptimizedChatterboxTurboTTS

        if changes:  # one trial in a child process, with the default options, is enough
            changes = {"trial": "here", **changes}
        if name == "mini":
            return OptimizedChatterboxTTS.from_mini(self.device, engine=EngineOptions(**changes))
        engine = EngineOptions(**{"runaway_guard": False, **changes})  # random weights speak noise
        family = FAMILIES[name]
        if family == "tts":
            return OptimizedChatterboxTTS.from_local(self._checkpoint(family), self.device, engine=engine)
        if family == "mtl":
            return OptimizedChatterboxMultilingualTTS.from_local(self._checkpoint(family), self.device, engine=engine)
        nano = dict(nano=True) if family == "nano" else {}
        return OptimizedChatterboxTurboTTS.from_local(self._checkpoint(family), self.device, engine=engine, **nano)

    def _checkpoint(self, family: str) -> Path:
        from ..weights.random_init import write_checkpoint

        folder = Path(self._folder.name, family)
        return folder if folder.is_dir() else write_checkpoint(folder, family, "full", 0)

    def forget(self) -> None:
        """Drops every model."""
        self._models.clear()
        gc.collect()

    def close(self) -> None:
        self.forget()
        self._folder.cleanup()

    # ---- what they say -----------------------------------------------------------------------------

    def speak(self, model: Any, texts: tuple[str, ...], most: int = 60, **how: Any) -> list[Any]:
        """Returns the speech of each text, each with its own seed."""
        how = {"seeds": list(range(1, len(texts) + 1)), "max_new_tokens": most, **how}
        return model.speak(model.jobs(texts, **self.language(model, "language_ids"), **how))

    @staticmethod
    def language(model: Any, name: str) -> dict[str, str]:
        return {name: "en"} if model.config.family == "mtl" else {}


def off(got: Tensor, wanted: Tensor) -> float:
    """Returns the norm of the difference over the norm; infinity if lengths differ."""
    if got.shape != wanted.shape:
        return float("inf")
    return float((got - wanted).norm() / wanted.norm().clamp(min=1e-30))


def first_difference(got: Tensor, wanted: Tensor) -> int | None:
    """Returns the index of the first difference of two rows of tokens, if any."""
    if torch.equal(got, wanted):
        return None
    n = min(len(got), len(wanted))
    parted = (got[:n] != wanted[:n]).nonzero()
    return int(parted[0]) if len(parted) else n


@contextmanager
def no_tf32() -> Iterator[None]:
    """Turns TF32 off inside, for comparisons in full float32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
