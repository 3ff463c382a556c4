"""Disables kernels and captures that crash or hang on this GPU, as found in a child process at the first start on it.

An illegal access or a hang cannot be caught in the process that has it. So a child with a time limit runs every kernel
and every capture once (trial_child.py), at the model's widths and with few layers. The results are stored in a file in
the user's cache folder, one per device, driver, torch, package, model and precision.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import threading
import time
import zlib
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..config import ModelConfig
from ..files import PART, cache_folder, whole
from ..options import CAPTURES, KERNELS, EngineOptions
from . import trial_process
from .kernels.language import available, triton

logger = logging.getLogger(__name__)

PACKAGE = Path(__file__).parents[1]
MATTERS = ("compile", "attention", "dtype", "s3gen_dtype", "quantize")  # options that change what is run
_lock = threading.Lock()
_known: dict[str, dict[str, Any]] = {}  # name -> verdict, for when no file can be written


def usable_options(options: EngineOptions, device: torch.device, config: ModelConfig) -> EngineOptions:
    """Returns resolved `options` without the parts that a GPU did not survive."""
    return options if device.type != "cuda" else surviving_options(options, device, config)


def surviving_options(options: EngineOptions, device: torch.device, config: ModelConfig) -> EngineOptions:
    """Returns `options` without the parts that a child process did not survive; starts one if no verdict is known."""
    wanted = parts_of(options)
    if options.trial not in ("first", "always") or not wanted:
        return options
    if why := trial_process.why_no_child():
        logger.info("captures and kernels are tried in this process alone: %s", why)
        return options
    try:
        with _lock:
            verdict = verdict_on(options, device, config, wanted)
    except Exception as problem:  # then the trial takes place in this process only
        text = "captures and kernels are tried in this process alone: %s: %s"
        logger.warning(text, type(problem).__name__, problem)
        return options
    bad = [part for part in fatal(verdict["parts"]) if part in wanted]
    for part in bad:
        found = verdict["parts"][part]
        text = "%s %s when it was tried on %s and is left out (%s); EngineOptions(trial='always') tries it again"
        logger.warning(text, part, found["verdict"], verdict["device"], found["text"])
    return without(options, bad)


def parts_of(options: EngineOptions) -> list[str]:
    """Returns the names of kernels and captures in use, kernels before the captures that contain them."""
    kernels = [f"kernel {name}" for name in KERNELS if options.wants(name) and available()]
    return kernels + [f"capture {name}" for name in CAPTURES if options.compile and options.records(name)]


def fatal(parts: dict[str, Any]) -> list[str]:
    return [part for part, found in parts.items() if found["verdict"] in trial_process.FATAL]


def without(options: EngineOptions, bad: list[str]) -> EngineOptions:
    changes = {}
    for field, kind, names, has in (
        ("kernels", "kernel", KERNELS, options.wants), ("captures", "capture", CAPTURES, options.records)
    ):  # fmt: skip
        if any(f"{kind} {name}" in bad for name in names):
            changes[field] = tuple(name for name in names if has(name) and f"{kind} {name}" not in bad)
    return options.replace(**changes)


def known() -> list[dict[str, Any]]:
    """Returns every verdict used in this process."""
    return list(_known.values())


# ---- verdicts ------------------------------------------------------------------------------------


def verdict_on(options: EngineOptions, device: torch.device, config: ModelConfig, wanted: list[str]) -> dict[str, Any]:
    about = described(options, device, config)
    name = name_of(about)
    file = cache_folder() / f"trial-{name}.json"
    verdict = _known.get(name) or (None if options.trial == "always" else read(file)) or {"parts": {}}
    if missing := [part for part in wanted if part not in verdict["parts"]]:
        text = "trying %d kernels and captures in another process, once for this device and model"
        logger.info(text, len(missing))
        known_bad = fatal(verdict["parts"])
        parts = verdict["parts"] | tried(missing, without(options, known_bad), device, config)
        verdict = {**about, "when": time.strftime("%Y-%m-%d %H:%M"), "parts": parts}
        write(file, verdict)
    _known[name] = verdict
    return verdict


def tried(parts: list[str], options: EngineOptions, device: torch.device, config: ModelConfig) -> dict[str, Any]:
    """Returns the verdict on each part. If a part kills its child, another child continues with the rest."""
    done: dict[str, Any] = {}
    ends = time.monotonic() + trial_process.ALL_SECONDS
    while (left := [part for part in parts if part not in done]) and time.monotonic() < ends:
        job = {"parts": left, "options": without(options, fatal(done)), "device": str(device), "config": config}
        heard, end = trial_process.in_child(job)
        done |= heard
        if end is None or end.part is None:  # it finished, or ended before its first part
            if untold := len(left) - len(heard):
                text = "of %d kernels and captures nothing was heard from another process (%s): this one goes on alone"
                logger.info(text, untold, end.text if end else "it ended")
            break
        done[end.part] = {"verdict": end.verdict, "text": end.text}
    # untold parts are stored too: the next start would do no better, and is to be quick
    return {part: {"verdict": trial_process.UNTOLD, "text": ""} for part in parts} | done


def described(options: EngineOptions, device: torch.device, config: ModelConfig) -> dict[str, Any]:
    """Returns everything that a verdict depends on."""
    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else f"{device.type} {platform.machine()}",
        "driver": driver() if gpu else "", "torch": torch.__version__, "triton": getattr(triton, "__version__", ""),
        "chatterbox_opt": __version__, "code": code(), "family": config.family,
        "sizes": f"{zlib.crc32(repr((config.t3, config.flow, config.hift)).encode()):08x}",
        **allocator_settings(), **{field: getattr(options, field) for field in MATTERS},
    }


def name_of(about: dict[str, Any]) -> str:
    device = re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    return f"{device}-{about['family']}-{zlib.crc32(json.dumps(about, sort_keys=True).encode()):08x}"


def read(file: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError, AttributeError):
        data = json.loads(file.read_text(encoding="utf-8"))
        parts = data["parts"].values() if isinstance(data, dict) and {"device", "parts"} <= data.keys() else [None]
        if all(isinstance(found, dict) and {"verdict", "text"} <= found.keys() for found in parts):
            return data
    return None


def write(file: Path, verdict: dict[str, Any]) -> None:
    """Other processes may read or write the file at the same time."""
    part = file.with_name(f"{file.name}.{os.getpid()}{PART}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole(file, part):
            part.write_text(json.dumps(verdict, indent=1), encoding="utf-8")
    except OSError as problem:
        text = "what was tried on this device cannot be kept, and is tried anew at the next start: %s"
        logger.warning(text, problem)


def allocator_settings() -> dict[str, str]:
    """Returns the variables that are set of those that choose how torch allocates device memory."""
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # new and old name
    return {name: os.environ[name] for name in names if name in os.environ}


@cache
def driver() -> str:
    with suppress(OSError):
        if found := re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", Path("/proc/driver/nvidia/version").read_text()):
            return found[1]
    with suppress(AttributeError, RuntimeError):
        return str(torch._C._cuda_getDriverVersion())
    return "unknown"


@cache
def code() -> str:
    """Returns a checksum of engine and models: a source checkout changes without its version."""
    total = 0
    for folder in ("engine", "models"):
        for file in sorted((PACKAGE / folder).rglob("*.py")):
            total = zlib.crc32(file.read_bytes(), total)
    return f"{total:08x}"
