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
BLUE, LIGHT, DARK, GREY, RED = "#1f5fa8", "#5b9bd5", "#222222", "#555555", "#c0392b"
WIDTH, LABELS, VALUES, LINE = 860, 250, 210, 28  # px: total width, left and right of the bars, height per row


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
                "model": _model(document),
                "options": _options(document["sides"][side]["asked"]),
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


def _options(asked: list[str]) -> str:
    return "defaults" if asked in ([], ["default"]) else " ".join(asked)


def _model(document: dict[str, Any]) -> str:
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
    what = f"{_model(document)} on {tables.device(where)}, commit {where['commit']}"
    return f"[{what}](benchmarks/results/{document['file']})"


# ---- the picture ---------------------------------------------------------------------------------


def picture(documents: list[dict[str, Any]]) -> str:
    """Returns an SVG with a bar per row of lead() and the range of its runs; empty if nothing was compared."""
    found = leading(rows(documents))
    if not found:
        return ""
    most = max(row["ratio"]["high"] for row in found)
    scale = (WIDTH - LABELS - VALUES) / most  # px per factor of 1
    lines, y = [], 64
    for device, own in groupby(found, key=lambda row: row["device"]):
        y += LINE
        lines.append(_text(16, y - 9, device, weight="bold"))
        for row in own:
            lines += _bar(row, y, scale)
            y += LINE
        y += 8
    one = LABELS + scale
    lines.insert(0, f'<line x1="{one:.1f}" x2="{one:.1f}" y1="58" y2="{y}" stroke="{RED}" stroke-dasharray="4 3"/>')
    weights = " and ".join(sorted({d["settings"]["weights"] for d in documents}))
    what = f"{weights.capitalize()} weights at full size, the same work on both sides. Thin lines: range of the runs. "
    what += "Light: other options than the defaults."
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 36}" viewBox="0 0 {WIDTH} {y + 36}"'
        ' font-family="Helvetica, Arial, sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{y + 36}" fill="white"/>',
        _text(16, 28, "Times faster than chatterbox-tts", weight="bold", size=17),
        _text(one, 52, "1: chatterbox-tts", anchor="middle", colour=RED, size=11),
        _text(WIDTH - 16, 52, "seconds per second of speech", anchor="end", colour=GREY, size=11),
        *lines,
        _text(16, y + 20, what, colour=GREY, size=11),
        "</svg>",
        "",
    ])


def _bar(row: dict[str, Any], y: float, scale: float) -> list[str]:
    """Draws a bar from 0 to the ratio, and a thin line from the lowest to the highest."""
    ratio, low, high = (row["ratio"][key] for key in ("ratio", "low", "high"))
    what = f"{row['model']}, {row['speech']:.3g} s"
    usual = row["options"] == "defaults"
    what += "" if usual else f", {row['options']}"
    end, centre = LABELS + high * scale, y + 10
    return [
        _text(LABELS - 10, y + 15, what, anchor="end"),
        f'<rect x="{LABELS}" y="{y}" width="{ratio * scale:.1f}" height="20" fill="{BLUE if usual else LIGHT}"/>',
        f'<line x1="{LABELS + low * scale:.1f}" x2="{end:.1f}" y1="{centre}" y2="{centre}" stroke="{DARK}"/>',
        _text(end + 8, y + 15, f"{ratio:.1f}x", weight="bold"),
        _text(WIDTH - 16, y + 15, f"{row['before']:.3g} → {row['now']:.3g}", anchor="end", colour=GREY),
    ]


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal", colour: str = DARK, size: int = 13
) -> str:
    how = f'text-anchor="{anchor}" font-weight="{weight}" font-size="{size}" fill="{colour}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {how}>{escape(text)}</text>'
