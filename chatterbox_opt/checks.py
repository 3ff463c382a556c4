"""Checks of callers' arguments, and their error messages."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)


def usable_device(device: Any) -> Any:
    """Returns the device as given, or "cpu" if it is MPS and missing, as upstream does; others must exist."""
    if device == "mlx":
        if why := missing_mlx():
            raise ValueError(f"device='mlx' needs MLX: pip install 'chatterbox-opt[mlx]' ({why})")
        return device
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={device!r}: give 'cuda', 'cuda:N', 'mps', 'mlx', 'cpu' or a torch.device") from error
    if kind == "mps" and not torch.backends.mps.is_available():
        logger.warning("MPS is not available here (torch %s); using the CPU", torch.__version__)
        return "cpu"
    if kind == "cuda":
        count, index = torch.cuda.device_count(), torch.device(device).index or 0
        if index >= count:
            raise ValueError(f"device={device!r}: torch {torch.__version__} sees {count} CUDA devices; try 'cpu'")
    elif kind not in ("cpu", "mps"):
        raise ValueError(f"device={device!r}: give 'cuda', 'cuda:N', 'mps', 'mlx', 'cpu' or a torch.device")
    return device


def missing_mlx() -> str | None:
    """Returns why MLX cannot be imported, if so: not installed, or built for another processor or system."""
    try:
        import mlx.core  # noqa: F401
    except ImportError as error:
        return str(error)
    return None


def _whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_steps(value: int | None) -> None:
    if value is not None and not (_whole(value) and 1 <= value <= 100):
        raise ValueError(f"n_cfm_timesteps={value!r}: a whole number from 1 to 100 is needed")


def check_batch(value: int) -> None:
    if not (_whole(value) and value >= 1):
        raise ValueError(f"batch={value!r}: a whole number of at least 1 is needed")


def check_seed(value: int | None) -> int | None:
    """Returns the seed in the range of torch's generators, as upstream accepts seeds of any size."""
    if value is None:
        return None
    if not _whole(value):
        raise ValueError(f"seed={value!r}: a whole number is needed, or None for torch's global generators")
    return int(value) % 2**64


def check_watchers(cancel: Any, progress: Any) -> None:
    """Checks what the engine asks and calls while it works."""
    if cancel is not None and not callable(getattr(cancel, "is_set", None)):
        raise ValueError(f"cancel={cancel!r}: an object with is_set() is needed, such as a threading.Event")
    if progress is not None and not callable(progress):
        raise ValueError(f"progress={progress!r}: a function of (tokens drawn, the most there can be) is needed")


def is_recording(recording: Any) -> bool:
    """Whether there is a recording: an empty path is none, as in upstream."""
    return recording is not None and not (isinstance(recording, str) and not recording)


class Unsaid(float):
    """Upstream's default value, distinguishable from the same number given by a caller."""


NEUTRAL = Unsaid(0.5)  # exaggeration


def check_exaggeration(value: float | None) -> float | None:
    """Returns the value, or None if the call does not give one."""
    if value is None or isinstance(value, Unsaid):
        return None
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value <= 10:
        raise ValueError(f"exaggeration={value!r}: a number from 0 to 10 is needed; 0.5 is neutral")
    return float(value)


def check_first_chunk(value: float) -> None:
    if not isinstance(value, Real) or isinstance(value, bool) or not 0.2 <= value <= 60:
        raise ValueError(f"first_chunk={value!r}: seconds from 0.2 to 60 are needed")


def check_loudness(value: float | None) -> float | None:
    if value is None:
        return None
    if not isinstance(value, Real) or isinstance(value, bool) or not -60 <= value <= -5:
        raise ValueError(f"loudness={value!r}: LUFS from -60 to -5 are needed, such as -20, or None")
    return float(value)


def one_per_text(name: str, value: Any, n: int) -> list:
    if isinstance(value, (np.ndarray, Tensor)) and value.ndim == 1 and name != "voices":
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [value] * n
    if len(value) != n:
        raise ValueError(f"{name} has {len(value)} values for {n} texts; give one for all or one for each")
    return list(value)


def unknown_argument(name: str, known: Sequence[str], known_are: str = "known are") -> str:
    """Returns a message that names the argument that was meant, or all there are."""
    if name in known:
        return f"{name} is an argument of other methods, not of this one"
    meant = get_close_matches(name, known, n=1)
    return f"unknown argument {name}; " + (f"did you mean {meant[0]}?" if meant else f"{known_are} {', '.join(known)}")
