"""What a step of T3 takes whose utterances share their voice's prompt, or have copies of it: full-size Turbo in int8
with random weights, in turns in one process.

    python benchmarks/benchmark_shared_prompt.py > benchmarks/results/shared-prompt-PROCESSOR-COMMIT.txt
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
from chatterbox_opt.engine.own_rows import DecodeEach, Own
from chatterbox_opt.engine.prefix import Prefix
from chatterbox_opt.options import EngineOptions

SPEAKING = (1, 2, 4, 8)
SPOKEN = 100  # positions of text and speech behind the prompt
REPEATS = 40


def a_step(step: Any, count: int, prompt: Prefix, shared: bool) -> Callable[[], Any]:
    """Returns a traced step of `count` utterances that have spoken SPOKEN positions."""
    at = prompt.length + SPOKEN
    length = 1 + (SPOKEN if shared else at)
    caches = [empty_kv(step.config, 1, length, step.device, torch.float32).normal_() for _ in range(count)]
    each = DecodeEach.of([Own(kv, at, prompt if shared else None) for kv in caches])
    run, key = partial(step.logits_each, each.runs), (count, shared)
    inputs = torch.randn(count, 1, step.config.dim), torch.full((count, 1), at), each.layers
    step.traced.prepare(key, run, *inputs)
    return partial(step.traced, key, run, *inputs)


@torch.inference_mode()
def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.manual_seed(0)
    print(tables.where(workload.environment("cpu")))
    with tempfile.TemporaryDirectory() as work:
        weights = workload.weights("random", "turbo", "full", Path(work))
        model = workload.load(weights, "cpu", EngineOptions(quantize="int8"))
    runner = model.pipeline.tokens
    prompt = runner.prefixes.get(model.conds.t3)
    print(f"a prompt of {prompt.length} positions, {SPOKEN} behind it")
    rows = []
    for count in SPEAKING:
        steps = [a_step(runner.step, count, prompt, shared) for shared in (False, True)]
        times: list[list[float]] = [[], []]
        for _ in range(1 + REPEATS):
            for step, taken in zip(steps, times):
                begin = time.perf_counter()
                step()
                taken.append(1e3 * (time.perf_counter() - begin))
        rows.append([count, *(f"{statistics.median(t[1:]):.1f} ({min(t[1:]):.1f})" for t in times)])
    print(tables.table(["speaking", *(f"{side}, ms, median (least)" for side in ("copies", "shared"))], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
