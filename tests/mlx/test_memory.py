"""The memory needed to load a T3 of published size in 8 bits."""

import subprocess
import sys

import pytest
from token_runs import NO_MLX

from chatterbox_opt.config import MODELS
from chatterbox_opt.weights import layout, random_init

if NO_MLX:
    pytest.skip(NO_MLX, allow_module_level=True)

LOADS = """
import sys
from pathlib import Path
from chatterbox_opt.config import MODELS
from chatterbox_opt.executor import load_t3
from chatterbox_opt.options import EngineOptions
from chatterbox_opt.weights.load import Source
import mlx.core as mx

t3 = load_t3(Source(Path(sys.argv[1])), MODELS["tts"], "mlx", EngineOptions(dtype="bfloat16", quantize="int8"))
status = Path("/proc/self/status").read_text()  # ru_maxrss begins with the parent's
kept = [1024 * int(status.split(f"{name}:")[1].split()[0]) for name in ("VmHWM", "RssAnon", "RssFile")]
print(mx.get_active_memory(), mx.get_peak_memory(), *kept)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_full_size_t3_loads_in_8_bits_within_1300_megabytes(tmp_path):
    """The whole process, torch included, less the pages of the libraries' files, of which the system maps more or fewer
    as they happen to be in its cache; the checkpoint is 2.1 GB."""
    config = MODELS["tts"].t3
    random_init._write(tmp_path / "t3.safetensors", layout.t3(config), random_init._t3_table(config), 0)
    done = subprocess.run([sys.executable, "-c", LOADS, tmp_path / "t3.safetensors"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    held, peak, process, memory, files = map(int, done.stdout.split())
    print(f"held {held / 1e6:.0f} MB, at most {peak / 1e6:.0f} MB by MLX, {process / 1e6:.0f} MB by the process, "
          f"which ends with {memory / 1e6:.0f} MB of its own and {files / 1e6:.0f} MB of files")
    assert held < 0.65e9
    assert process - files < 1.3e9
