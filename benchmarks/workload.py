"""What all benchmarks share: texts, a voice, weights, options, and the record of where they ran."""

from __future__ import annotations

import dataclasses
import datetime
import logging
import os
import platform
import re
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MEASURED = "CHATTERBOX_OPT_CHECKOUT"  # another checkout, whose package these scripts measure


def checkout(folder: str | Path) -> Path:
    """Returns the folder. Ends the script if it is no checkout: an installed package would be measured for it."""
    if not (Path(folder) / "chatterbox_opt" / "__init__.py").is_file():
        raise SystemExit(f"{folder}: it is no checkout of this package: there is no chatterbox_opt/__init__.py")
    return Path(folder)


sys.path.insert(0, str(checkout(os.environ.get(MEASURED, ROOT))))  # a checkout need not be installed

TOKEN_RATE = 25  # speech tokens per second
SAMPLE_RATE = 24_000
SEED = 7
FAMILIES = ("tts", "mtl", "turbo", "nano")
SIZES = ("full", "tiny")

STORY = (
    "The harbour was quiet that morning, and the first boats were already out at sea.",
    "An old man sat on the wall with a cup of coffee, counting the gulls as he had done for years.",
    "Nobody knew why he did it, but everyone in town had asked him once.",
    "He would only smile, write down a number in a small green book, and put the book away.",
    "When he died, they found forty of those books on a shelf above his bed.",
    "The numbers had been going down a little every year, and on the last page he had written a single word.",
)
# name -> (seconds of speech, text that a person reads aloud in about that time)
TEXTS: dict[str, tuple[float, str]] = {
    name: (seconds, " ".join(STORY[:count]))
    for name, seconds, count in (("short", 5.0, 1), ("medium", 10.0, 2), ("long", 15.0, 3), ("paragraph", 30.0, 6))
}


@dataclasses.dataclass(frozen=True)
class Utterance:
    name: str
    text: str
    seconds: float  # of speech, when the length is fixed

    @property
    def tokens(self) -> int:
        return max(1, round(self.seconds * TOKEN_RATE))


def utterance(name: str) -> Utterance:
    """A name from TEXTS, or a number of seconds: then as much text as is read in that time."""
    if name in TEXTS:
        seconds, text = TEXTS[name]
        return Utterance(name, text, seconds)
    try:
        seconds = float(name)
    except ValueError:
        raise SystemExit(f"length {name!r}: one of {', '.join(TEXTS)}, or a number of seconds") from None
    whole, text = TEXTS["paragraph"]
    words = text.split()
    return Utterance(f"{seconds:g} s", " ".join(words[: max(2, round(len(words) * seconds / whole))]), seconds)


# ---- weights -------------------------------------------------------------------------------------

COMPLETE = "complete"  # a file in a folder of random weights, whose speech never ends by itself


@dataclasses.dataclass(frozen=True)
class Weights:
    """Where a model comes from. `fixed`: speech never ends by itself, so both sides of a comparison do equal work."""

    kind: str  # "random" | "published" | "mini" | "folder"
    family: str
    folder: Path | None
    fixed: bool


def weights(choice: str, family: str, size: str, work: Path) -> Weights:
    if choice == "random":
        return Weights("random", family, random_checkpoint(family, size, work), True)
    if choice == "published":
        return Weights("published", family, None, False)
    if choice == "mini":
        from chatterbox_opt.weights.files import MINI

        if family != "tts":
            raise SystemExit(f"--weights mini speaks English only; --model {family} has no such weights")
        return Weights("mini", family, MINI, False)
    if not Path(choice).is_dir():
        raise SystemExit(
            f"--weights {choice}: random, published, mini, or a checkpoint folder; there is no such folder"
        )
    return Weights("folder", family, Path(choice), (Path(choice) / COMPLETE).exists())


def random_checkpoint(family: str, size: str, work: Path) -> Path:
    """Returns a folder of seeded random weights that never draw the end of speech, written once into `work`."""
    from chatterbox_opt.weights import random_init

    recipe = Path(random_init.__file__).read_bytes() + Path(__file__).read_bytes()
    folder = work / f"{family}-{size}-{zlib.crc32(recipe):08x}"
    if not (folder / COMPLETE).exists():
        say(f"writing random weights: {family}, {size}")
        random_init.write_checkpoint(folder, family, size, 0, decoder="meanflow")
        for path in folder.glob("t3_*.safetensors"):
            never_end(path)
        (folder / COMPLETE).touch()
    return folder


def never_end(path: Path) -> None:
    """Makes control tokens impossible in a T3 file of either backbone.

    GPT-2's head has a bias. Llama's has none: one channel is made to carry a constant, 1 in each speech embedding
    and next to untouched by the layers, and the head reads it. Any code that runs the file as it is then draws
    exactly as many tokens as it is allowed to.
    """
    from safetensors.torch import load_file, save_file

    first_control, channel, low = 6561, 0, -1e4
    state = load_file(path)
    if "speech_head.bias" in state:
        state["speech_head.bias"][first_control:] = low
    else:
        state["speech_emb.weight"][:, channel] = 1.0
        state["speech_pos_emb.emb.weight"][:, channel] = 0.0
        state["tfmr.norm.weight"][channel] = 1.0
        for key, tensor in state.items():
            if key.endswith(("o_proj.weight", "down_proj.weight")):
                tensor[channel] *= 1e-3  # not 0: a row of zeros has no scale to be quantized with
        state["speech_head.weight"][first_control:] = 0.0
        state["speech_head.weight"][first_control:, channel] = low
    written = path.with_suffix(".part")
    save_file(state, written)
    written.replace(path)


def load(source: Weights, device: str, engine: Any = None, **switches: Any) -> Any:
    """Loads a model of this package. `switches` are its keywords: preset=, decoder= and so on."""
    from chatterbox_opt.mtl_tts import OptimizedChatterboxMultilingualTTS
    from chatterbox_opt.tts import OptimizedChatterboxTTS
    from chatterbox_opt.tts_turbo import OptimizedChatterboxTurboTTS

    doors = {"tts": OptimizedChatterboxTTS, "mtl": OptimizedChatterboxMultilingualTTS}
    door = doors.get(source.family, OptimizedChatterboxTurboTTS)
    how = {"engine": engine, **switches} | ({"nano": True} if source.family == "nano" else {})
    try:
        if source.folder is None:
            return door.from_pretrained(device, **how)
        return door.from_local(source.folder, device, **how)
    except (OSError, ValueError) as error:  # such as a hub out of reach: nothing that a traceback would explain
        raise SystemExit(str(error)) from error


def speaker(source: Weights, args: Any) -> Any:
    """Returns a model with the options of the command line and a voice, warmed up."""
    model = load(source, args.device, **switches(args.options))
    if source.kind != "mini":  # which speaks in its own voice
        model.conds = model.prepare_voice(voice_file(args.work_dir))
    model.warmup()
    return model


def voice_file(work: Path, seconds: float = 12.0, variant: int = 0) -> Path:
    """Writes a fixed, made-up recording: a voice-like buzz with moving formants, in syllables, free of rights.
    Variants differ a little, so that nothing kept from one answers for another."""
    import numpy as np

    path = work / f"voice-{seconds:g}s-{variant}.wav"
    if path.exists():
        return path
    rng = np.random.default_rng(SEED)
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = 120 + variant + 25 * np.sin(2 * np.pi * 0.31 * t) + 8 * np.sin(2 * np.pi * 2.3 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    formants = [(550 + 250 * np.sin(2 * np.pi * 1.7 * t), 120), (1500 + 600 * np.sin(2 * np.pi * 1.1 * t + 1), 200)]
    sound = 0.02 * rng.standard_normal(len(t))
    for k in range(1, 30):
        near = sum(np.exp(-(((k * pitch - centre) / (3 * width)) ** 2)) for centre, width in formants)
        sound += (0.05 + near) / k**0.5 * np.sin(k * phase)
    sound *= np.clip(np.sin(2 * np.pi * 2.1 * t) + 0.8, 0, 1)  # syllables
    write_wav(path, 0.5 * sound / np.abs(sound).max())
    return path


def write_wav(path: Path, samples: Any) -> None:
    """(N,) in [-1, 1] at 24 kHz -> 16 bits, with the standard library: the baseline's process has nothing of ours."""
    import wave

    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((np.clip(np.asarray(samples), -1, 1) * 32767).astype("<i2").tobytes())


# ---- options -------------------------------------------------------------------------------------


def switches(words: Sequence[str]) -> dict[str, Any]:
    """Returns the keywords of load() for words such as `exact`, `field=value`, `preset=fast` and `decoder=meanflow`."""
    from chatterbox_opt.options import EngineOptions

    options = EngineOptions()
    chosen: dict[str, Any] = {}
    for word in words:
        if word in ("exact", "default"):
            options = EngineOptions.exact() if word == "exact" else EngineOptions()
            continue
        name, equals, value = word.partition("=")
        if equals and name in ("preset", "decoder"):
            chosen[name] = value
            continue
        if not equals or name not in EngineOptions.__dataclass_fields__:
            fields = ", ".join(EngineOptions.__dataclass_fields__)
            raise SystemExit(f"option {word!r}: exact, default, preset=, decoder= or FIELD=VALUE; fields are {fields}")
        try:
            options = options.replace(**{name: _value(value)})
        except ValueError as error:
            raise SystemExit(f"option {word!r}: {error}") from None
    return {"engine": options, **chosen}


def _value(text: str) -> Any:
    named = {"none": None, "true": True, "false": False}
    if text.lower() in named:
        return named[text.lower()]
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    return float(text) if re.fullmatch(r"-?\d*\.\d+", text) else text


# ---- where it ran --------------------------------------------------------------------------------


def environment(device: str) -> dict[str, Any]:
    """Returns enough to repeat a figure, and nothing that names a machine or its owner."""
    import torch

    import chatterbox_opt

    record = {
        "device": device_name(device),
        "kind": device.split(":")[0],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(_memory_bytes() / 1e9),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "chatterbox_opt": chatterbox_opt.__version__,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }
    if record["kind"] == "cpu":
        record["capability"] = cpu_capability()
    return record


def device_name(device: str) -> str:
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    if device.startswith("mps"):
        return "Apple GPU"
    return cpu_name()


def cpu_capability() -> str:
    """Returns the units that torch uses: AVX2, AVX512, AVX512-BF16 or AVX512-AMX."""
    import torch

    from chatterbox_opt.engine import resolve

    units = "-AMX" if resolve.cpu_has_amx() else "-BF16" if resolve.cpu_has_bf16() else ""
    return torch.backends.cpu.get_cpu_capability() + units


def cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    name = found[1].strip() if found else platform.processor() or platform.machine()
    return re.sub(r"\((R|TM)\)", "", name).removesuffix(" Processor")


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, AttributeError, OSError):
        return 0


def commit(tree: str | Path = ROOT) -> str:
    """Returns the short hash, with "-dirty" if the tree differs from it; BENCHMARK_COMMIT in a tree without git."""

    def git(*args: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", "-C", str(tree), *args], capture_output=True, text=True)

    try:
        head = git("rev-parse", "--short=10", "HEAD")
    except OSError:
        return os.environ.get("BENCHMARK_COMMIT", "unknown")
    if head.returncode != 0:
        return os.environ.get("BENCHMARK_COMMIT", "unknown")
    changed = git("status", "--porcelain", "--", "chatterbox_opt", "benchmarks/*.py").stdout.strip()
    return head.stdout.strip() + ("-dirty" if changed else "")


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


# ---- the process --------------------------------------------------------------------------------------


def quiet() -> None:
    """Silences warnings about cut speech: every fixed-length run is cut on purpose."""
    logging.basicConfig(level=logging.ERROR)
    logging.getLogger("chatterbox_opt").setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def missing_device(device: str) -> str | None:
    """Returns why torch cannot use it, if so."""
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError:
        return "torch knows no such device"
    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    return None if there.get(kind, lambda: True)() else f"torch {torch.__version__} finds none here"


def best_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
