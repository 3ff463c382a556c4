"""The command line of all benchmarks, and their results: a JSON file, a table on stdout, and a last line to parse."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tables
import workload
from workload import say


def arguments(description: str, **defaults: Any) -> argparse.ArgumentParser:
    """Adds the options of all benchmarks."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--device", default=workload.best_device(), help="cuda, cuda:N, mps or cpu; the best there is otherwise"
    )
    parser.add_argument("--size", choices=workload.SIZES, default="full", help="of random weights")
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=Path(tempfile.gettempdir()) / "chatterbox-opt-benchmarks",
        help="where random weights are kept between runs (about 3 GB a family)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("benchmark_out"),
        help="a .json file, or a folder in which it is named for device and commit",
    )
    parser.add_argument("--threads", type=int, help="torch's CPU threads; torch decides otherwise")
    parser.set_defaults(**defaults)
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    args = parser.parse_args(argv)
    args.command = command(argv)
    if why := workload.missing_device(args.device):
        parser.error(f"--device {args.device}: {why}")
    args.work_dir = args.work_dir.resolve()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    workload.quiet()
    return args


def count(text: str) -> int:
    """A number of things for argparse: at least one."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def positive(text: str) -> float:
    """A number above zero for argparse."""
    if not (number := float(text)) > 0:
        raise ValueError
    return number


def command(argv: Sequence[str] | None = None) -> str:
    """Returns the command as typed in the root of the tree, without folders of this machine."""
    words = list(sys.argv[1:] if argv is None else argv)
    kept, skip = [], False
    for word in words:
        if not skip and word not in ("--work-dir", "--out"):
            kept.append(Path(word).name if word.startswith("/") else word)
        skip = word in ("--work-dir", "--out")
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *kept])


def document(
    benchmark: str, args: argparse.Namespace, source: workload.Weights, label_words: Sequence[str] = (), **settings: Any
) -> dict[str, Any]:
    """Returns the beginning of a result, to which a benchmark adds its rows."""
    return {
        "benchmark": benchmark,
        "label": label(args.model, args.size, source, *label_words),
        "command": args.command,
        "environment": workload.environment(args.device),
        "settings": {"model": args.model, "weights": source.kind, "size": args.size, **settings},
    }


def publish(document: dict[str, Any], out: Path) -> Path:
    """Writes the JSON; prints its table and, as the last line of stdout, the JSON itself."""
    path = result_path(document, out)
    path.parent.mkdir(parents=True, exist_ok=True)
    document = rounded(document)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(tables.markdown(document), flush=True)
    say(f"written: {path}")
    print(json.dumps(document, ensure_ascii=False), flush=True)
    return path


def result_path(document: dict[str, Any], out: Path) -> Path:
    if out.suffix == ".json":
        return out
    where = document["environment"]
    name = [document["benchmark"], document.get("label", ""), where["device"]]
    name += [f"{where['cores']}-core", *instructions(where)] if where["kind"] == "cpu" else []
    name.append(where["commit"])
    return out / (workload.slug("-".join(filter(None, name))) + ".json")


def instructions(where: dict[str, Any]) -> list[str]:
    """Returns the instruction set: processors of one name differ in it, and so in speed."""
    return [where["capability"]] if "capability" in where else []


def label(family: str, size: str, source: workload.Weights, *more: str) -> str:
    """Returns what distinguishes this result from others of the same benchmark."""
    parts = [family, size if source.fixed and size != "full" else "", "" if source.fixed else source.kind, *more]
    return "-".join(filter(None, parts))


def rounded(value: Any) -> Any:
    """Rounds to five significant digits; more would be noise."""
    if isinstance(value, float):
        return None if not math.isfinite(value) else float(f"{value:.5g}")
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, (list, tuple)) else value


def spread(values: Iterable[float]) -> dict[str, Any]:
    runs = list(values)
    return {"median": statistics.median(runs), "low": min(runs), "high": max(runs), "runs": runs}
