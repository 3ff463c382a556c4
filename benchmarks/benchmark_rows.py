"""What it costs to make a row of T3's step equal to the last bit in any batch: products in half precision as torch
computes them, in blocks of a fixed number of rows, and padded only where this processor's kernels require it.

    python benchmarks/benchmark_rows.py > benchmarks/results/rows-PROCESSOR-COMMIT.txt
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import tables
import torch
import workload
from torch import nn

from chatterbox_opt.engine.quantize import FIXED, FixedRowsLinear
from chatterbox_opt.engine.row_counts import least_rows

SHAPES = ((3072, 1024), (1024, 1024), (8192, 1024), (1024, 4096))  # of one layer of English T3: (outputs, inputs)
LAYERS = 30
REPEATS = 11


class Blocks(FixedRowsLinear):
    def _block_rows(self) -> tuple[int, int]:
        return FIXED, FIXED


@torch.inference_mode()
def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.manual_seed(0)
    plain = [[nn.Linear(k, n, bias=False).bfloat16() for n, k in SHAPES] for _ in range(LAYERS)]
    kinds = {
        "torch": plain,
        f"blocks of {FIXED}": [[Blocks(linear) for linear in layer] for layer in plain],
        "rows that agree": [[FixedRowsLinear(linear) for linear in layer] for layer in plain],
    }
    print(tables.where(workload.environment("cpu")))
    for n, k in SHAPES:
        least = least_rows(n, k, torch.bfloat16, False, torch.get_num_threads())
        print(f"{k} inputs, {n} outputs: from {least} rows on a row has the same bits")
    rows = []
    for count in (1, 2, 4, 8, 16, 32):
        x = {k: torch.randn(count, 1, k).bfloat16() for _, k in SHAPES}
        times: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(1 + REPEATS):
            for name, layers in kinds.items():
                begin = time.perf_counter()
                for layer in layers:
                    for linear, (_, k) in zip(layer, SHAPES):
                        linear(x[k])
                times[name].append(1e3 * (time.perf_counter() - begin))
        rows.append([count, *(f"{statistics.median(t[1:]):.1f} ({min(t[1:]):.1f})" for t in times.values())])
    print(tables.table(["rows", *(f"{name}, ms a step, median (least)" for name in kinds)], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
