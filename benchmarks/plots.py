"""One picture per benchmark, readable by itself. Needs matplotlib, which is optional."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import report
import tables
import workload

GREY, RED, BLUES = "#9a9a9a", "#c0392b", ("#1f5fa8", "#5b9bd5", "#9dc3e6", "#0b3a6f")
STAGE_COLOURS = {
    "text": "#c7c7c7",
    "tokens": "#1f5fa8",
    "mel": "#e08a1e",
    "wav": "#3b9b5a",
    "watermark": "#8a5fb5",
    "other": "#dddddd",
}
STAGE_NAMES = {
    "text": "text",
    "tokens": "T3: text to speech tokens",
    "mel": "flow: tokens to mel",
    "wav": "HiFT: mel to sound",
    "watermark": "watermark",
    "other": "everything else",
}


def safely(draw: Callable[[dict, Path], None], document: dict[str, Any], path: Path) -> bool:
    """Draws if matplotlib is installed; without it a run still keeps its figures."""
    try:
        import matplotlib
    except ImportError:
        workload.say("no picture: pip install matplotlib")
        return False
    matplotlib.use("Agg")
    draw(report.rounded(document), path)
    workload.say(f"written: {path}")
    return True


def comparison(document: dict[str, Any], path: Path) -> None:
    """Draws bars by length with the real-time line, and beside them the time per stage."""
    from matplotlib import pyplot as plt

    names = [n for n in document["sides"] if any(r["side"] == n for r in document["rows"])]
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.4), width_ratios=(1.15, 1))
    _bars(left, document, names)
    _stages(right, document, names)
    _save(figure, document, "time to speak", path)


def _save(figure: Any, document: dict[str, Any], what: str, path: Path) -> None:
    """Saves with a title, and a line that names the machine."""
    from matplotlib import pyplot as plt

    settings = document["settings"]
    size = "" if settings["size"] == "full" or settings["weights"] != "random" else f", {settings['size']} networks"
    title = f"{tables.FAMILY[settings['model']]}: {what}, {settings['weights']} weights{size}"
    figure.suptitle(title, fontsize=14, x=0.01, ha="left", weight="bold")
    figure.text(0.01, 0.012, tables.where(document["environment"]), fontsize=8, color="#555555")
    figure.tight_layout(rect=(0, 0.03, 1, 0.96))
    figure.savefig(path, dpi=110, bbox_inches="tight")  # long names at the right edge are not cut
    plt.close(figure)


def _bars(axes: Any, document: dict[str, Any], names: list[str]) -> None:
    lengths = list(dict.fromkeys(r["length"] for r in document["rows"]))
    found = {(r["length"], r["side"]): r["rtf"] for r in document["rows"]}
    ratio = {(r["length"], r["side"]): r["ratio"] for r in document["ratios"]}
    width = 0.8 / len(names)
    for k, name in enumerate(names):
        at = [i + (k - (len(names) - 1) / 2) * width for i, n in enumerate(lengths) if (n, name) in found]
        rtf = [found[n, name] for n in lengths if (n, name) in found]
        middle = [r["median"] for r in rtf]
        error = [[r["median"] - r["low"] for r in rtf], [r["high"] - r["median"] for r in rtf]]
        axes.bar(at, middle, width * 0.92, yerr=error, color=_colour(name, names), label=_label(name),
                 error_kw=dict(ecolor="#333333", lw=1, capsize=3))
        for x, r, length in zip(at, rtf, [n for n in lengths if (n, name) in found]):
            text = f"{r['median']:.2g}"
            if (length, name) in ratio:
                roomy = len(lengths) * len(names) <= 6 and ratio[length, name] > 1.05
                text += f"\n{ratio[length, name]:.1f}x" + (" faster" if roomy else "")
            axes.annotate(text, (x, r["high"]), (0, 3), textcoords="offset points", ha="center", fontsize=9)
    axes.axhline(1, color=RED, ls="--", lw=1.3)
    axes.annotate("real\ntime", (1, 1), (3, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                  va="center", color=RED, fontsize=9)
    axes.set_ylim(0, 1.15 * max(1, *(r["high"] for r in found.values())))
    axes.set_xticks(range(len(lengths)), [f"{n}\n{found_seconds(document, n):.3g} s of speech" for n in lengths])
    axes.set_xlim(-0.6, len(lengths) - 0.4)
    axes.set_ylabel("seconds of computing per second of speech")
    what = "; x: times faster than chatterbox-tts" if ratio else ""
    axes.set_title(f"Lower is better; thin lines: spread of the runs{what}", fontsize=10, loc="left", pad=42)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=len(names), fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def found_seconds(document: dict[str, Any], length: str) -> float:
    return next(r["speech_seconds"] for r in document["rows"] if r["length"] == length)


def _stages(axes: Any, document: dict[str, Any], names: list[str]) -> None:
    """Draws the stages of the longest text that both sides spoke, each as a share of its side's time."""
    lengths = list(dict.fromkeys(r["length"] for r in document["rows"]))
    spoken = [
        n for n in lengths if all(any(r["length"] == n and r["side"] == s for r in document["rows"]) for s in names)
    ]
    length = (spoken or lengths)[-1]
    rows = [r for r in document["rows"] if r["length"] == length]
    stages = [s for s in STAGE_NAMES if any(r["stages"].get(s, 0) > 0.005 * sum(r["stages"].values()) for r in rows)]
    for i, r in enumerate(rows):
        total, left = sum(r["stages"].values()), 0.0
        for stage in stages:
            share = r["stages"][stage] / total
            axes.barh(
                i, share, 0.55, left=left, color=STAGE_COLOURS[stage], label=STAGE_NAMES[stage] if i == 0 else None
            )
            if share > 0.1:
                dark = stage in ("tokens", "wav", "watermark", "mel")
                axes.text(
                    left + share / 2,
                    i,
                    _seconds(r["stages"][stage]),
                    ha="center",
                    va="center",
                    fontsize=9,
                    color="white" if dark else "black",
                )
            left += share
    axes.set_yticks(range(len(rows)), [f"{_label(r['side'])}\n{_seconds(r['seconds']['median'])}" for r in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.set_title(
        f"Where each side's own time goes: {length}, {found_seconds(document, length):.3g} s of speech",
        fontsize=10,
        loc="left",
    )
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=2, fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def _label(name: str) -> str:
    return {"baseline": "chatterbox-tts"}.get(name, name.replace("optimized", "chatterbox_opt").replace(", ", "\n"))


def _colour(name: str, names: list[str]) -> str:
    return GREY if name == "baseline" else BLUES[[n for n in names if n != "baseline"].index(name) % len(BLUES)]


def server(document: dict[str, Any], path: Path) -> None:
    """Draws the time to the first sound and the total throughput by number of clients."""
    from matplotlib import pyplot as plt

    rows = document["rows"]
    names = [f"{r['clients']}" + (f"\n{r['refused']} sent away" if r["refused"] else "") for r in rows]
    places = range(len(rows))
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8))
    for key, name, colour in (("first_p95", "p95", BLUES[2]), ("first_p50", "median", BLUES[0])):
        left.plot(places, [r[key] for r in rows], "o-", color=colour, label=name)
        for x, r in zip(places, rows):
            left.annotate(f"{r[key]:.3g}", (x, r[key]), (0, 6), textcoords="offset points", ha="center", fontsize=9)
    left.set_yscale("log")
    left.set_title("Seconds to the first sound (lower is better)", fontsize=10, loc="left")
    left.legend(frameon=False)
    right.bar(places, [r["speech_per_second"] for r in rows], color=BLUES[1])
    for x, r in zip(places, rows):
        text = f"{r['speech_per_second']:.1f}\n{100 * r['continuous']:.0f} %"
        right.annotate(text, (x, r["speech_per_second"]), (0, 4), textcoords="offset points", ha="center", fontsize=8)
    right.axhline(1, color=RED, ls="--", lw=1.2)
    right.margins(y=0.18)
    what = "Speech made in a second, all clients together, s; below: streams without a gap"
    right.set_title(what, fontsize=10, loc="left")
    for axes in (left, right):
        axes.set_xticks(places, names)
        axes.set_xlabel("clients, all at once")
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, document, "served", path)


def concurrency(document: dict[str, Any], path: Path) -> None:
    """Draws total sentences per minute and the time to the first sound of streams, by number of callers."""
    from matplotlib import pyplot as plt

    rows, sides = document["rows"], [s for s in ("before", "now") if any(r["side"] == s for r in document["rows"])]
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8))
    colours = dict(zip(sides, (GREY, BLUES[0]) if len(sides) > 1 else (BLUES[0],)))
    modes = list(dict.fromkeys(r["mode"] for r in rows))
    panels = ((left, modes[0], "sentences_per_minute"), (right, modes[-1], "first_p95"))
    for axes, mode, key in panels:
        for side in sides:
            mine = [r for r in rows if r["mode"] == mode and r["side"] == side]
            axes.plot([str(r["callers"]) for r in mine], [r[key] for r in mine], "o-", color=colours[side], label=side)
            for i, r in enumerate(mine):
                axes.annotate(f"{r[key]:.3g}", (i, r[key]), (0, 6), textcoords="offset points", ha="center", fontsize=9)
        axes.set_xlabel("callers, all at once")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    left.set_title(f"Sentences a minute, all callers together ({modes[0]}; higher is better)", fontsize=10, loc="left")
    right.set_title(f"Seconds to the first sound, p95 ({modes[-1]}; lower is better)", fontsize=10, loc="left")
    _save(figure, document, f"many callers, {document['settings']['options']}", path)
