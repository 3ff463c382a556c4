"""Reference results of the mini model on a CPU in float32 with every optimisation off, to compare devices with.

`python -m chatterbox_opt.doctor.references FILE` computes them anew; with this package's own file they are replaced.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..engine.noise import RequestNoise
from ..options import EngineOptions

FILE = Path(__file__).with_name("references.npz")
CASES: dict[str, tuple[str, dict[str, Any]]] = {  # name -> (text, arguments of a call)
    "drawn": ("The boats were already out at sea.", dict(seed=7)),
    "greedy": ("Nobody knew why he did it.", dict(seed=11, temperature=0.0, cfg_weight=0.3)),
    "sorted": ("She wrote it down in a small green book.", dict(seed=13, top_p=0.9, repetition_penalty=1.5)),
}
MOST = 60  # tokens per case
EVERY = 16  # every 16th sample is stored


class HostNoise(RequestNoise):
    """Noise drawn on the CPU, and so equal on every device."""

    def __init__(self, device: torch.device, seed: int) -> None:
        super().__init__(device, seed)
        self.local = self.cpu

    def exponential(self, out: Tensor) -> Tensor:
        uniform = torch.rand(out.shape, generator=self.cpu, dtype=torch.float64)
        return out.copy_(-torch.log1p(-uniform))  # exponential_() draws other numbers in torch 2.6

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.cpu).to(self.device)


def exact_mini(device: str | torch.device) -> Any:
    """Returns the mini model with the reference's options and noise drawn on the CPU."""
    from ..tts import OptimizedChatterboxTTS

    exact = EngineOptions.exact()
    model = OptimizedChatterboxTTS.from_mini(device, engine=exact, enable_watermark=False)
    model.pipeline.noises = lambda seed, count, alone: [HostNoise(model.pipeline.device, seed) for _ in range(count)]
    return model


def spoken(model: Any, case: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (tokens, every 16th sample) of a case."""
    text, how = CASES[case]
    seed, how = how["seed"], {k: v for k, v in how.items() if k != "seed"}
    (speech,) = model.speak(model.jobs([text], seeds=seed, max_new_tokens=MOST, **how))
    return torch.cat(speech.tokens).numpy().astype(np.int16), speech.wav[0, ::EVERY].numpy()


def stored() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    with np.load(FILE) as data:
        return {case: (data[f"{case}.tokens"], data[f"{case}.samples"]) for case in CASES}


def main() -> None:
    parser = argparse.ArgumentParser(description="Computes the doctor's references anew.")
    parser.add_argument("file", type=Path, help=f"what to write; the doctor reads {FILE}")
    file = parser.parse_args().file
    model, arrays = exact_mini("cpu"), {}
    for case in CASES:
        arrays[f"{case}.tokens"], arrays[f"{case}.samples"] = spoken(model, case)
    np.savez_compressed(file, **arrays)
    print(f"{file}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
