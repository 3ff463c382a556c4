"""The first tables of README.md and OPTIMIZATION.md and their picture: speed against chatterbox-tts by device.
check_results.py makes them from the comparisons in results/."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from itertools import groupby
from typing import Any

import tables

PICTURE = "overview.svg"  # in results/
PREFERRED = "medium"  # the length shown for a device, if it was measured
USUAL, FAST = "defaults", "preset=fast"  # what the picture shows, darker and lighter
# px. From the left: device, model, bars, and a column of figures for each of the two; height per row, between devices
WIDTH, MODELS, BARS, FIGURES, LINE, GAP, TOP = 860, 260, 270, 190, 22, 10, 66
# It has a background of its own, as a page may be dark where the system is not.
STYLE = """<style>
.page { fill: #ffffff } text { fill: #222222 } .note { fill: #555555 } .one { stroke: #c0392b }
rect.usual, circle.usual { fill: #1f5fa8 } rect.fast, circle.fast { fill: #9cc6ee }
@media (prefers-color-scheme: dark) {
.page { fill: #0d1117 } text { fill: #e6edf3 } .note { fill: #9da7b1 } .one { stroke: #ff8a80 }
rect.usual, circle.usual { fill: #58a6ff } rect.fast, circle.fast { fill: #24507f }
}
</style>"""


def rows(documents: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns one row per device, model, options and length."""
    found = []
    for document in documents:
        for r in document["rows"]:
            side = r["side"]
            if side == "baseline" or document["sides"][side]["failed"]:
                continue
            at_length = [b for b in document["rows"] if b["length"] == r["length"]]
            found.append({
                "device": tables.device(document["environment"]),
                "model": model_of(document),
                "options": options_of(document["sides"][side]["asked"]),
                "length": r["length"],
                "speech": r["speech_seconds"],
                "before": next((b["rtf"]["median"] for b in at_length if b["side"] == "baseline"), None),
                "now": r["rtf"]["median"],
                "ratio": next(
                    (q for q in document["ratios"] if (q["side"], q["length"]) == (side, r["length"])), None
                ),
                "memory": _memory(document["memory"].get(side, {}), document["memory"].get("baseline", {})),
            })
    return found


def leading(found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns one length per device, model and options that were compared with chatterbox-tts."""
    chosen: dict[tuple, dict[str, Any]] = {}
    for row in found:
        key = row["device"], row["model"], row["options"]
        if row["ratio"] and (key not in chosen or chosen[key]["length"] != PREFERRED):
            chosen[key] = row
    return list(chosen.values())


def options_of(asked: list[str]) -> str:
    return "defaults" if asked in ([], ["default"]) else " ".join(asked)


def model_of(document: dict[str, Any]) -> str:
    return tables.FAMILY[document["settings"]["model"]].removeprefix("Chatterbox ").replace("Chatterbox", "English")


def _memory(ours: dict[str, Any], base: dict[str, Any]) -> str:
    key = "peak_vram_mb" if ours.get("peak_vram_mb") else "peak_rss_mb"
    if not ours.get(key):
        return ""
    before = f", was {base[key] / 1000:.1f} GB" if base.get(key) else ""
    return f"{ours[key] / 1000:.1f} GB{before}"


# ---- tables --------------------------------------------------------------------------------------


def lead(documents: list[dict[str, Any]]) -> str:
    """Returns a table with a line per device and model, and a column per set of options."""
    found = leading(rows(documents))
    sets = list(dict.fromkeys(row["options"] for row in found))
    lines = []
    for (device, model, speech, before), own in groupby(found, _compared):
        cells = {row["options"]: f"{row['now']:.3g}, {row['ratio']['ratio']:.1f}x" for row in own}
        lines.append([device, f"{model} {speech:.3g} s", f"{before:.3g}", *(cells.get(name, "") for name in sets)])
    return tables.table(["device", "speech", "chatterbox-tts", *sets], lines) if lines else ""


def _compared(row: dict[str, Any]) -> tuple:
    return row["device"], row["model"], row["speech"], row["before"]


def summary(documents: list[dict[str, Any]]) -> str:
    """Returns a table of every length, with memory and the source of each figure."""
    head = ["device", "model", "options", "speech", "chatterbox-tts, RTF", "chatterbox_opt, RTF", "times faster"]
    cells = [[*_cells(row), row["memory"]] for row in rows(documents)]
    if not cells:
        return ""
    weights = " and ".join(sorted({d["settings"]["weights"] for d in documents}))
    note = f"RTF: seconds of computing for a second of speech, {tables.timed(documents)}; {weights} weights. Sources:\n"
    return tables.table([*head, "peak memory"], cells) + "\n\n" + note + ";\n".join(map(_source, documents)) + "."


def _cells(row: dict[str, Any]) -> list[str]:
    before = f"{row['before']:.3g}" if row["before"] else ""
    ratio = tables.ratio_cell(row["ratio"], 1)
    return [row["device"], row["model"], row["options"], f"{row['speech']:.3g} s", before, f"{row['now']:.3g}", ratio]


def _source(document: dict[str, Any]) -> str:
    where = document["environment"]
    what = f"{model_of(document)} on {tables.device(where)}, commit {where['commit']}"
    return f"[{what}](benchmarks/results/{document['file']})"


# ---- the picture ---------------------------------------------------------------------------------


def picture(documents: list[dict[str, Any]]) -> str:
    """Returns an SVG with a row per device and model: a bar for the defaults over one for preset=fast; empty if nothing
    was compared."""
    found = [row for row in leading(rows(documents)) if row["options"] in (USUAL, FAST)]
    if not found:
        return ""
    scale = (WIDTH - BARS - FIGURES) / max(row["ratio"]["ratio"] for row in found)  # px per factor of 1
    lines, y = list[str](), TOP
    for device, of_device in groupby(found, key=lambda row: row["device"]):
        for i, words in enumerate(device.replace(" (", "\n(").split("\n")):
            lines.append(_text(16, y + 15 + i * 18, words, weight="bold" if i == 0 else "normal"))
        for _, of_model in groupby(of_device, key=lambda row: row["model"]):
            lines += _row(list(of_model), y, scale)
            y += LINE
        y += GAP
    one = BARS + scale
    weights = " and ".join(sorted({d["settings"]["weights"] for d in documents}))
    what = f"{weights.capitalize()} weights of full size; as many tokens on both sides. "
    what += f"{FAST} is approximate, and less work a token."
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 24}" viewBox="0 0 {WIDTH} {y + 24}"'
        ' font-family="Helvetica, Arial, sans-serif" font-size="13">',
        STYLE,
        f'<rect class="page" width="{WIDTH}" height="{y + 24}" rx="6"/>',
        _text(16, 28, "Times faster than chatterbox-tts", weight="bold", size=17),
        _text(one, TOP - 12, "1: chatterbox-tts", anchor="middle", size=11, kind="note"),
        *_head(found),
        *lines,
        f'<line class="one" x1="{one:.1f}" x2="{one:.1f}" y1="{TOP - 6}" y2="{y - GAP + 4}" stroke-dasharray="4 3"/>',
        _text(16, y + 10, what, size=11, kind="note"),
        "</svg>",
        "",
    ])


def _head(found: list[dict[str, Any]]) -> list[str]:
    """Names the columns of figures, with the colour of their bars."""
    out = []
    for name in dict.fromkeys(row["options"] for row in found):
        x = _column(name)
        mark = f'<circle class="{_kind(name)}" cx="{x - len(name) * 6 - 8}" cy="{TOP - 16}" r="5"/>'
        out += [mark, _text(x, TOP - 12, name, anchor="end", size=11, kind="note")]
    return out


def _row(of_model: list[dict[str, Any]], y: int, scale: float) -> list[str]:
    """Draws the bars of one device and model, the shorter over the longer, and their figures."""
    out = [_text(MODELS, y + 15, f"{of_model[0]['model']}, {of_model[0]['speech']:.3g} s", anchor="end")]
    for row in sorted(of_model, key=lambda row: -row["ratio"]["ratio"]):
        kind, ratio = _kind(row["options"]), row["ratio"]["ratio"]
        out.append(f'<rect class="{kind}" x="{BARS}" y="{y + 2}" width="{ratio * scale:.1f}" height="18"/>')
        weight = "bold" if row["options"] == USUAL else "normal"
        out.append(_text(_column(row["options"]), y + 15, f"{ratio:.1f}x", anchor="end", weight=weight, kind=kind))
    return out


def _kind(options: str) -> str:
    return "usual" if options == USUAL else "fast"


def _column(options: str) -> int:
    return WIDTH - 16 - (88 if options == USUAL else 0)


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal", size: int = 13, kind: str = ""
) -> str:
    how = f'text-anchor="{anchor}" font-weight="{weight}" font-size="{size}"' + (f' class="{kind}"' if kind else "")
    return f'<text x="{x:.1f}" y="{y:.1f}" {how}>{escape(text)}</text>'
