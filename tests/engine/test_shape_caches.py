"""Memory that torch keeps per shape, while texts of ever new lengths are spoken."""

import os
import subprocess
import sys

import pytest
import torch

from chatterbox_opt.engine.shape_caches import CAPACITIES, bound_shape_caches

SPEAKS = """
from pathlib import Path
import torch
from chatterbox_opt import EngineOptions, OptimizedChatterboxTTS

def held():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) // 1024

model, begin = OptimizedChatterboxTTS.from_mini("cpu", engine=EngineOptions(s3gen_dtype="float32")), held()
if not {padded}:
    model.pipeline.wav.grain = 1
for length in range(60, 140, 4):
    model.tokens_to_wav(torch.arange(length) % 6000, seed=0)
print(held() - begin)
"""


def megabytes(padded: bool = True, **settings: str) -> int:
    environment = {name: value for name, value in os.environ.items() if name not in CAPACITIES} | settings
    command = [sys.executable, "-c", SPEAKS.replace("{padded}", str(padded))]
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_new_lengths_take_less_memory_than_torch_would_keep():
    bounded, usual = megabytes(), megabytes(padded=False, **dict.fromkeys(CAPACITIES, "1024"))
    print(f"{bounded} MB, and {usual} MB for lengths as they are with torch's own capacities")
    assert bounded < 0.75 * usual


def test_a_program_keeps_its_own_capacities(monkeypatch):
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    bound_shape_caches(torch.device("cpu"))
    assert {name: os.environ[name] for name in CAPACITIES} == CAPACITIES | {"LRU_CACHE_CAPACITY": "7"}
