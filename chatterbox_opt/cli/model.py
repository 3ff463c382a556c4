"""Options that choose the model, its weights and the device; and loading by them."""

from __future__ import annotations

import argparse
import platform
from pathlib import Path
from typing import Any

from ..presets import PRESETS
from ..weights.files import DECODERS

FAMILIES = {"english": "tts", "multilingual": "mtl", "turbo": "turbo", "nano": "nano"}
MODELS = (*FAMILIES, "mini")
QUANTIZED = ("int8", "int4")
QUANTIZE = "T3's weights in 8 or 4 bits, see docs/options.md; by default neither"


def add_arguments(command: argparse.ArgumentParser, *, choice: bool = True, cache: bool = False) -> None:
    """`choice`: the command has several models to choose from; `cache`: it offers --cache-packed."""
    group = command.add_argument_group("model and device")
    if choice:
        group.add_argument(
            "--model", choices=MODELS, default="english",
            help="mini: the small voice in this package; others are downloaded, english is 3.2 GB",
        )
        group.add_argument("--quantize", choices=QUANTIZED, help=QUANTIZE)
    group.add_argument("--device", default="auto", help="cuda, mlx, mps or cpu; by default the best available")
    group.add_argument("--dir", type=Path, help="a checkpoint folder instead of the published weights")
    group.add_argument("--no-watermark", action="store_true", help="leave out the mark of generated speech")
    group.add_argument("--preset", choices=PRESETS, help="a bundle of options, see docs/options.md")
    group.add_argument("--decoder", help="meanflow: Turbo's two-step decoder; standard: the model's own; or a file")
    if cache:
        group.add_argument(
            "--cache-packed", action="store_true", help="store the weights in the engine's form, for faster starts",
        )


def check(args: argparse.Namespace) -> None:
    """Raises ValueError if the options contradict each other, before anything is loaded."""
    if getattr(args, "lang", None) and args.model != "multilingual":
        raise ValueError(f"--lang {args.lang} needs --model multilingual; {args.model} speaks English")
    if args.dir and args.model == "mini":
        raise ValueError(f"--dir {args.dir}: mini comes with the package; leave out --dir or --model")


def with_absolute_paths(args: argparse.Namespace) -> argparse.Namespace:
    """For workers, which may have another working directory. A decoder in the folder comes first, as in loading."""
    args.dir = args.dir and Path(args.dir).absolute()
    beside = args.dir and args.decoder and (args.dir / args.decoder).is_file()
    if args.decoder not in (None, *DECODERS) and not beside and Path(args.decoder).is_file():
        args.decoder = str(Path(args.decoder).absolute())
    return args


def language(args: argparse.Namespace) -> str | None:
    """Returns the language, or None for a model that speaks English only."""
    return (args.lang or "en") if args.model == "multilingual" else None


def load(args: argparse.Namespace) -> Any:
    if args.model in ("english", "mini"):
        from ..tts import OptimizedChatterboxTTS

        return source(OptimizedChatterboxTTS, args, quantize=args.quantize)
    if args.model == "multilingual":
        from ..mtl_tts import OptimizedChatterboxMultilingualTTS

        return source(OptimizedChatterboxMultilingualTTS, args, quantize=args.quantize)
    from ..tts_turbo import OptimizedChatterboxTurboTTS

    return source(OptimizedChatterboxTurboTTS, args, nano=args.model == "nano", quantize=args.quantize)


def source(cls: Any, args: argparse.Namespace, **options: Any) -> Any:
    options |= {"preset": args.preset, "decoder": args.decoder}
    options = {k: v for k, v in options.items() if v is not None}
    device = device_for(args.dir) if args.device == "auto" else args.device
    options["enable_watermark"] = not args.no_watermark
    if getattr(args, "cache_packed", False):
        options["cache_packed"] = True
    if args.dir:
        return cls.from_local(args.dir, device, **options)
    if getattr(args, "model", None) == "mini":
        return cls.from_mini(device, **options)
    return cls.from_pretrained(device, **options)


def device_for(folder: Path | None) -> str:
    """Returns the device that a packed folder is for, or else the best."""
    from ..weights.packed import is_packed, read_marker

    return read_marker(folder).form.device if folder and is_packed(folder) else best_device()


def best_device() -> str:
    import torch

    from ..checks import missing_mlx

    if torch.cuda.is_available():
        return "cuda"
    if not torch.backends.mps.is_available():
        return "cpu"
    return "mlx" if on_apple_silicon() and not missing_mlx() else "mps"


def on_apple_silicon() -> bool:
    return (platform.system(), platform.machine()) == ("Darwin", "arm64")
