"""Memory that torch keeps per shape, while texts of ever new lengths are spoken."""

import os
import subprocess
import sys

import pytest

from chatterbox_opt.engine.shape_caches import CAPACITIES

SPEAKS = """
from pathlib import Path
import torch
from chatterbox_opt import EngineOptions, OptimizedChatterboxTTS

def held():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) // 1024

model, begin = OptimizedChatterboxTTS.from_mini("cpu", engine=EngineOptions(s3gen_dtype="float32")), held()
for length in range(60, 140, 4):
    model.tokens_to_wav(torch.arange(length) % 6000, seed=0)
print(held() - begin)
"""


def megabytes(**settings: str) -> int:
    environment = {name: value for name, value in os.environ.items() if name not in CAPACITIES} | settings
    command = [sys.executable, "-c", SPEAKS]
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_new_lengths_take_less_memory_than_torch_would_keep():
    bounded, usual = megabytes(), megabytes(**dict.fromkeys(CAPACITIES, "1024"))
    print(f"{bounded} MB, and {usual} MB with torch's own capacities, which a program may ask for")
    assert bounded < 0.75 * usual
