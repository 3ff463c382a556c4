"""Writes the tables of the documents, between markers, and the picture, from benchmarks/results/*.json:

    <!-- results:lead -->  <!-- results:summary -->  <!-- results:comparison turbo -->  <!-- results:ladder tts -->
    <!-- results:inference tokens -->  <!-- results:limits -->  <!-- results:quality -->  <!-- results:streaming -->
    ... each up to  <!-- /results -->

A word after the name selects one model or stage. Of several files of a benchmark and device, the newest is used.

    python benchmarks/check_results.py             # write them
    python benchmarks/check_results.py --check     # report differences, with exit status 1
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import limits
import overview
import tables
from workload import ROOT

DOCUMENTS = ("README.md", "OPTIMIZATION.md", "docs/quality.md")
MARKED = re.compile(r"(<!-- results:([a-z]+)((?: [a-z0-9]+)*) -->\n).*?(<!-- /results -->)", re.S)
NEEDED = ("benchmark", "label", "command", "environment", "settings", "rows")
PRIVATE = re.compile(r"(?<![\w.])/(home|root|work|tmp|users|mnt)/", re.I)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--documents", type=Path, nargs="+", default=[ROOT / name for name in DOCUMENTS])
    args = parser.parse_args(argv)
    results, problems = read(args.results)
    if not results:  # or tables would be emptied
        problems.append(f"{args.results}: there is no result")
    for path in args.documents if results else ():
        if not path.exists():
            continue
        text = path.read_text(encoding="utf-8")
        try:
            written = fill(text, results)
        except ValueError as error:
            problems.append(f"{path.name}: {error}")
            continue
        if written != text and args.check:
            problems.append(f"{path.name}: its tables are not those of the results; run benchmarks/check_results.py")
        elif written != text:
            path.write_text(written, encoding="utf-8")
            print(f"written: {path.name}")
    if results:
        problems += draw(results, args.results / overview.PICTURE, args.check)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def draw(results: list[dict[str, Any]], path: Path, check: bool) -> list[str]:
    """Writes the picture, or returns what is wrong with it."""
    drawn = overview.picture(chosen(results, "comparison", []))
    if drawn == (path.read_text(encoding="utf-8") if path.exists() else ""):
        return []
    if check:
        return [f"{path.name}: its numbers are not those of the results; run benchmarks/check_results.py"]
    path.write_text(drawn, encoding="utf-8")
    print(f"written: {path.name}")
    return []


def read(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the newest result per benchmark, label, device and instruction set, and what is wrong with files."""
    newest: dict[tuple, dict[str, Any]] = {}
    problems = []
    for path in sorted(folder.glob("*.json")):
        text = path.read_text(encoding="utf-8")
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            problems.append(f"{path.name}: not JSON ({error})")
            continue
        missing = [key for key in NEEDED if key not in document]
        if missing:
            problems.append(f"{path.name}: lacks {', '.join(missing)}")
            continue
        if PRIVATE.search(text):
            problems.append(f"{path.name}: holds a path of the machine it was made on")
        document["file"] = path.name
        where = document["environment"]
        key = (document["benchmark"], document["label"], where["device"], where["cores"], where.get("capability"))
        if key not in newest or newest[key]["environment"]["date"] < where["date"]:
            newest[key] = document
    return sorted(newest.values(), key=_order), problems


def _order(document: dict[str, Any]) -> tuple:
    """GPUs first, then CPUs by cores; models in the order of the family."""
    where, settings = document["environment"], document["settings"]
    family = list(tables.FAMILY).index(settings["model"])
    place = (where["device"], -where["cores"], where.get("capability", ""))
    return (where["kind"] == "cpu", *place, family, document["label"])


def fill(text: str, results: list[dict[str, Any]]) -> str:
    def one(found: re.Match) -> str:
        name, words = found[2], found[3].split()
        if name not in WRITERS:
            raise ValueError(f"results:{name} is not one of {', '.join(WRITERS)}")
        written = WRITERS[name](results, words)  # empty if nothing was measured yet
        return found[1] + (f"\n{written}\n\n" if written else "") + found[4]

    return MARKED.sub(one, text)


def chosen(results: list[dict[str, Any]], benchmark: str, words: list[str]) -> list[dict[str, Any]]:
    """Returns results of full size or trained weights only: figures of tiny networks are meaningless."""
    out = [d for d in results if d["benchmark"] == benchmark]
    out = [d for d in out if d["settings"].get("size") == "full" or d["settings"].get("weights") != "random"]
    models = [w for w in words if w in tables.FAMILY]
    return [d for d in out if not models or d["settings"]["model"] in models]


def pages(benchmark: str) -> Callable[[list[dict[str, Any]], list[str]], str]:
    def write(results: list[dict[str, Any]], words: list[str]) -> str:
        return "\n\n".join(_only(tables.markdown(d), d, words) for d in chosen(results, benchmark, words))

    return write


def _only(page: str, document: dict[str, Any], words: list[str]) -> str:
    """Returns an inference result with only the stages asked for."""
    stages = {r.get("stage") for r in document["rows"]} & set(words)
    if document["benchmark"] != "inference" or not stages:
        return page
    rows = [r for r in document["rows"] if r["stage"] in stages]
    kept = {**document, "rows": rows, "logits": document["logits"] if "tokens" in stages else []}
    return tables.markdown(kept)


WRITERS: dict[str, Callable[[list[dict[str, Any]], list[str]], str]] = {
    "lead": lambda results, words: overview.lead(chosen(results, "comparison", words)),
    "summary": lambda results, words: overview.summary(chosen(results, "comparison", words)),
    "limits": lambda results, words: limits.table(*(chosen(results, b, words) for b in ("comparison", "inference"))),
    **{name: pages(name) for name in ("comparison", "inference", "ladder", "quality")},
    **{name: pages(name) for name in ("streaming", "server", "concurrency")},
}


if __name__ == "__main__":
    sys.exit(main())
