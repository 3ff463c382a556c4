"""The child process of trial_process.py: runs kernels and captures, one after another, which may crash it.

A part that raises an exception has survived, because the main process can catch and report that.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import sys
import time
from typing import Any

import torch

from ..config import ModelConfig
from ..models.flow import Flow
from ..models.hift import Hift
from ..models.t3 import T3
from ..options import EngineOptions
from .kernels.step import MOST_ROWS
from .mel import MelRunner
from .resolve import disable_cudnn_attention, stored_dtype
from .tokens import TokenRunner
from .trial_process import SURVIVED, UNTOLD
from .wav import WavRunner

BATCH = 1  # utterances; kernels are tried with many rows in any case
SLOTS = 2  # in the cache


def main() -> None:
    output = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # compilers and drivers may print too, and stdout is for verdicts
    job = pickle.load(sys.stdin.buffer)
    device, options, config = torch.device(job["device"]), job["options"], job["config"]
    disable_cudnn_attention(device)
    torch.zeros(1, device=device)
    for part in job["parts"]:
        tell(output, part, "begun")
        start = time.monotonic()
        verdict, text = outcome(part, options, device, config)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # raises errors of earlier asynchronous operations
        tell(output, part, verdict, text=text, seconds=round(time.monotonic() - start, 2))


def tell(output: Any, part: str, verdict: str, **more: Any) -> None:
    output.write(json.dumps({"part": part, "verdict": verdict, **more}) + "\n")


def outcome(part: str, options: EngineOptions, device: torch.device, config: ModelConfig) -> tuple[str, str]:
    try:
        run(part, options, device, config)
    except torch.OutOfMemoryError:
        return UNTOLD, "there was no memory for a trial"
    except Exception as problem:
        return SURVIVED, f"{type(problem).__name__}: {problem}"[:200]
    return SURVIVED, ""


@torch.inference_mode()
def run(part: str, options: EngineOptions, device: torch.device, config: ModelConfig) -> None:
    """Runs one part as a model of these widths would."""
    kind, name = part.split()
    alone = dict(kernels=(name,), compile=None, captures=()) if kind == "kernel" else dict(captures=(name,))
    options, config = options.replace(trial="here", slots=SLOTS, **alone), shallow(config)
    made: WavRunner | MelRunner | TokenRunner
    if name in ("snake", "vocoder"):
        made = WavRunner(_on(device, Hift, config.hift), options)
    elif name in ("flow_attention", "add_norm", "flow"):
        made = MelRunner(_on(device, Flow, config.flow), options)
    else:
        t3 = _on(device, T3, config.t3).to(stored_dtype(options, device))
        made = tokens = TokenRunner(t3, options)
        tokens.step.kernels.fit(MOST_ROWS)
    if kind == "capture":
        made.warmup(BATCH)


def _on(device: torch.device, kind: type, config: Any) -> torch.nn.Module:
    with torch.device(device):
        return kind(config).eval().requires_grad_(False)


def shallow(config: ModelConfig) -> ModelConfig:
    """Returns the config with few layers, whose shapes are unchanged."""
    return dataclasses.replace(
        config, t3=dataclasses.replace(config.t3, layers=1),
        flow=dataclasses.replace(config.flow, layers=1, up_layers=1, mid_blocks=1, block_layers=1),
    )  # fmt: skip
