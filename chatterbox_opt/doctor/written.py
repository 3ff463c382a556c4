"""Writes the report: as a table, as Markdown, and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from .findings import NOT_HERE, OK, SLOWER, WRONG, Finding

ORDER = (WRONG, SLOWER, OK, NOT_HERE)


def line(finding: Finding) -> str:
    hint = f"\n{'':48}-> {finding.switch}" if finding.switch else ""
    return f"{finding.verdict:<10}{finding.check:<38}{finding.text}{hint}"


def summary(findings: Sequence[Finding]) -> str:
    counts = Counter(f.verdict for f in findings)
    return ", ".join(f"{counts[v]} {v}" for v in ORDER if counts[v])


def about(environment: dict[str, Any]) -> list[str]:
    """Returns lines about hardware and packages, and what `auto` means there."""
    record = environment["facts"]
    extras = ", ".join(f"{k} {v or 'missing'}" for k, v in record["extras"].items())
    lines = [", ".join(f"{k} {v}" for k, v in record.items() if k != "extras" and v not in (None, "")), extras]
    return [*lines, *(f"{field}={value!r}: {why}" for field, value, why in environment["choices"])]


def markdown(environment: dict[str, Any], findings: Sequence[Finding], warnings: Sequence[str]) -> str:
    lines = [f"## chatterbox-opt doctor: {summary(findings)}", ""]
    lines += [f"- {text}" for text in about(environment)]
    lines += ["", "| | check | found | otherwise |", "|---|---|---|---|"]
    for f in sorted(findings, key=lambda f: ORDER.index(f.verdict)):
        cells = (f.verdict, f.check, f.text, f"`{f.switch}`" if f.switch else "")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    if warnings:
        lines += ["", "Warnings meanwhile:", "", *(f"- {text}" for text in warnings)]
    return "\n".join(lines) + "\n"


def document(environment: dict[str, Any], findings: Sequence[Finding], warnings: Sequence[str]) -> dict[str, Any]:
    choices = [dict(field=f, value=v, why=why) for f, v, why in environment["choices"]]
    return {
        "environment": environment["facts"], "auto": choices, "verdict": WRONG if wrong(findings) else OK,
        "findings": [vars(f) for f in findings], "warnings": list(warnings),
    }  # fmt: skip


def wrong(findings: Sequence[Finding]) -> bool:
    return any(f.verdict == WRONG for f in findings)
