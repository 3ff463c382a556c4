"""`chatterbox-opt doctor`: runs every check and reports the findings."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from ..options import EngineOptions
from . import manners, numbers, written
from .environment import choices, facts
from .findings import Check, Finding, found
from .patient import Patient
from .stages import stages

# the most important first, as the last ones are skipped when time runs out
CHECKS: tuple[Check, ...] = (
    numbers.stored_references, numbers.survived, numbers.the_same_again, numbers.graphs, numbers.kernels,
    numbers.in_company, numbers.in_chunks, manners.watermark, manners.cancelled, manners.threads, stages,
    manners.memory, manners.deleted,
)  # fmt: skip
SECONDS = {True: 100.0, False: 540.0}  # quick or not -> time after which no check begins


class Warnings(logging.Handler):
    """Collects the package's warnings for the report."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self.texts and "max_new_tokens" not in text:  # cut short on purpose
            self.texts.append(text)


def examine(
    device: str, names: Sequence[str] = (), quick: bool = False, json_file: Path | None = None,
    markdown_file: Path | None = None, checks: Sequence[Check] = CHECKS,
) -> int:  # fmt: skip
    """Runs the checks; returns the exit status, 0 if nothing is wrong. Without `names`: mini, and English in full size
    if there is time."""
    start, heard, logger = time.perf_counter(), Warnings(), logging.getLogger("chatterbox_opt")
    names = tuple(dict.fromkeys(names)) or (("mini",) if quick else ("mini", "english"))
    patient = Patient(device, names, quick)
    environment = {"facts": facts(patient.device), "choices": choices(EngineOptions(), patient.device)}
    findings: list[Finding] = []
    print(*written.about(environment), "", sep="\n", flush=True)
    logger.addHandler(heard)
    propagates, logger.propagate = logger.propagate, False  # they are in the report
    captures = logger.getChild("engine.graphs")
    level = captures.level
    captures.setLevel(logging.DEBUG)  # so that it counts the nodes of graphs

    def write() -> None:
        if markdown_file is not None:
            markdown_file.write_text(written.markdown(environment, findings, heard.texts), encoding="utf-8")
        if json_file is not None:
            made = written.document(environment, findings, heard.texts) | {"seconds": time.perf_counter() - start}
            made = json.loads(json.dumps(made, default=str), parse_constant=str)  # JSON has no infinity
            json_file.write_text(json.dumps(made, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    try:
        for file in filter(None, (markdown_file, json_file)):
            file.open("a").close()  # what cannot be written is to be known now
        for check in checks:
            for finding in found(check, patient, SECONDS[quick] - (time.perf_counter() - start)):
                findings.append(finding)
                print(written.line(finding), flush=True)
            # rewritten after each check, so that an aborted run leaves a report
            write()
    finally:
        logger.removeHandler(heard)
        captures.setLevel(level)
        logger.propagate = propagates
        patient.close()
    print("", *heard.texts, written.summary(findings), sep="\n", flush=True)
    return int(written.wrong(findings))
