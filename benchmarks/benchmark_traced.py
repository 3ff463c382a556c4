"""What Python costs per step on a CPU: T3's layers and head, and a step of the flow, with and without TorchScript, in
turns in one process; and what tracing costs.

    python benchmarks/benchmark_traced.py > benchmarks/results/traced-PROCESSOR-COMMIT.txt
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import tables
import torch
import workload

from chatterbox_opt.engine.cache import empty_kv
from chatterbox_opt.engine.mel import MelJob
from chatterbox_opt.engine.noise import RequestNoise
from chatterbox_opt.engine.own_rows import DecodeEach, Own, may_be_shared
from chatterbox_opt.options import EngineOptions

CASES = (  # model, options, positions that each row attends to, utterances
    ("mini", {}, 200, (1, 8)), ("tts", {"quantize": "int8"}, 200, (1, 4)), ("turbo", {"quantize": "int8"}, 476, (1, 4)),
)  # fmt: skip
REPEATS = 40
TOKENS = 75  # of the utterance whose mel is solved: 3 s


def load(name: str, options: dict[str, Any], work: Path) -> Any:
    choice, family = ("mini", "tts") if name == "mini" else ("random", name)
    return workload.load(workload.weights(choice, family, "full", work), "cpu", EngineOptions(**options))


def a_step_of_t3(model: Any, context: int, count: int) -> tuple[Any, Callable[..., Any], tuple[Any, ...]]:
    """Returns (tracer, function, its inputs)."""
    step = model.pipeline.tokens.step
    config, rows = step.config, 1 if step.config.is_gpt else 2
    prompt = model.pipeline.tokens.prefixes.get(model.conds.t3)
    before, shared = (prompt.length, prompt) if may_be_shared(prompt) else (0, None)
    kv = [empty_kv(config, rows, context - before + 1, step.device, torch.float32).normal_() for _ in range(count)]
    each = DecodeEach.of([Own(one, context, shared) for one in kv])
    x = torch.randn(rows * count, 1, config.dim)
    at = torch.full((rows * count, 1), context)
    return step.traced, partial(step.logits_each, each.runs), (x, at, each.layers)


def a_step_of_the_flow(model: Any) -> tuple[Any, Callable[..., Any], tuple[Any, ...]]:
    mel = model.pipeline.mel
    row = mel.row(MelJob(torch.arange(TOKENS), model.conds.gen, RequestNoise(mel.device, 1)))
    solve = mel.begin([row])
    span, times = mel.schedule(solve.steps)
    return mel.traced, mel.guided, (solve.x, times[0], span[1] - span[0], *solve.conditions)


def measured(name: str, traced: Any, run: Callable[..., Any], inputs: tuple[Any, ...]) -> list[str]:
    begin = time.perf_counter()
    traced.prepare(name, run, *inputs)
    took = time.perf_counter() - begin
    assert name in traced.keys, "it was not traced"
    sides: dict[str, tuple[Callable[[], Any], list[float]]] = {
        "eager": (partial(run, *inputs), []), "traced": (partial(traced, name, run, *inputs), []),
    }  # fmt: skip
    for _ in range(REPEATS):
        for call, times in sides.values():
            begin = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - begin))
    figures = [f"{statistics.median(times):.1f} ({min(times):.1f})" for _, times in sides.values()]
    return [name, *figures, f"{took:.2f}"]


@torch.inference_mode()
def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.manual_seed(0)
    print(tables.where(workload.environment("cpu")))
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for model_name, options, context, counts in CASES:
            model = load(model_name, options, Path(work))
            label = ", ".join([model_name, *(f"{k}={v}" for k, v in options.items())])
            rows += [measured(f"{label}, {n} speaking", *a_step_of_t3(model, context, n)) for n in counts]
            if model_name == "mini":
                rows.append(measured(f"{label}, a step of the flow", *a_step_of_the_flow(model)))
    head = ["", "eager, ms, median (least)", "traced, ms, median (least)", "a trace and its check, s"]
    print(tables.table(head, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
