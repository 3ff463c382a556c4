"""The table of what a whole call would take if each of its stages ran at its ceiling, beside what it took. Rates of the
processor come from benchmark_inference.py, times of calls from benchmark_comparison.py; both are in results/."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import overview
import tables
from workload import TOKEN_RATE

from chatterbox_opt.config import MODELS
from chatterbox_opt.doctor import ceilings

PROMPT_SECONDS = 10.0  # what S3Gen takes of a recording


def table(comparisons: Iterable[dict[str, Any]], inferences: Iterable[dict[str, Any]]) -> str:
    """Returns a row per call on each processor whose rates are known, or "" if there is none."""
    machines = rates(inferences)
    rows = []
    for document in comparisons:
        machine = machines.get(tables.device(document["environment"]))
        for call in document["rows"] if machine else ():
            side = document["sides"][call["side"]]
            if side["options"] is None or side["failed"]:
                continue
            speech, took = call["speech_seconds"], call["rtf"]["median"]
            least = floor(machine, document["settings"]["model"], speech, side) / speech
            name = f"{overview.model_of(document)} {speech:.3g} s", overview.options_of(side["asked"])
            where = tables.device(document["environment"])
            rows.append((where, *name, f"{least:.3g}", f"{took:.3g}", f"{100 * least / took:.0f} %"))
    head = ("device", "speech", "options", "at the ceilings, RTF", "measured, RTF", "reached")
    return tables.table(head, rows) if rows else ""


def rates(inferences: Iterable[dict[str, Any]]) -> dict[str, ceilings.Machine]:
    """Returns the best rates that were measured on each CPU: floor() knows the precisions of these."""
    found: dict[str, ceilings.Machine] = {}
    for document in inferences:
        if document["environment"]["kind"] != "cpu":
            continue
        where, measured = tables.device(document["environment"]), document["machine"]
        known = found.get(where, ceilings.Machine(0.0, {}))
        kinds = {kind: max(rate, known.gflops.get(kind, 0.0)) for kind, rate in measured["gflops"].items()}
        found[where] = ceilings.Machine(max(measured["read_gb_per_s"], known.read_gb), kinds)
    return found


def floor(machine: ceilings.Machine, model: str, seconds: float, side: dict[str, Any]) -> float:
    """Returns seconds for T3's steps, the flow and the vocoder. Reading the text, draws and the watermark, which take
    little, are not counted."""
    config, options = MODELS[model], side["options"]
    # preset=fast takes fewer steps where there is no two-step decoder
    two_steps = "preset=fast" in side["asked"] and options["flow_steps"] is None
    flow = MODELS["turbo"].flow if two_steps else config.flow
    steps, drawn = options["flow_steps"] or flow.default_steps, round(seconds * TOKEN_RATE)
    prompt = round((options["prompt_seconds"] or PROMPT_SECONDS) * TOKEN_RATE)
    weights, half = options["quantize"] or options["dtype"], options["s3gen_dtype"]
    one = ceilings.t3_step(config.t3, weights, config.t3.prefix_len + drawn // 2, 1, "float32")
    rendering = ceilings.flow(flow, drawn, prompt, steps) + ceilings.hift(config.hift, 2 * drawn)
    return drawn * machine.seconds(*one, weights)[0] + machine.seconds(rendering, 0.0, half)[0]
