"""The format of packed checkpoints is frozen: one of an older version must not be read as something else."""

import hashlib
import json
import zlib

import pytest
import torch

from chatterbox_opt import EngineOptions
from chatterbox_opt.packing import pack
from chatterbox_opt.weights import safefile
from chatterbox_opt.weights.packed import FORMAT, MARKER, NAMES
from chatterbox_opt.weights.random_init import write_checkpoint

# (format, family, dtype, quantize) -> part: names, types and shapes; what lies where
KNOWN = {
    (1, "tts", "float32", None): {
        "t3": ("5803a1a43c30", 21.32), "ve": ("f15e68220e4e", -4.33), "s3gen": ("df66cae9bf4e", 42.0),
    },
    (1, "tts", "float16", "int8"): {
        "t3": ("dce2a1a26467", -2382.87), "ve": ("f15e68220e4e", -4.33), "s3gen": ("df66cae9bf4e", 42.0),
    },
    (1, "tts", "bfloat16", "int4"): {
        "t3": ("49684f963561", -5740.71), "ve": ("f15e68220e4e", -4.33), "s3gen": ("5d05f694aec2", 41.34),
    },
    (1, "turbo", "bfloat16", "int8"): {
        "t3": ("1c7fd63a1ff6", -4106.03), "ve": ("f15e68220e4e", -4.33), "s3gen": ("b20229b57dba", 36.86),
    },
}
TOLERANCE = 0.05  # one tensor whose rows change places moves the sum by more


def patterned(path):
    """The file with values that are the same everywhere, in place of random ones."""
    entries = safefile.read_header(path)
    tensors = dict(safefile.read_tensors(path, entries))
    for key, tensor in tensors.items():
        if tensor.is_floating_point():
            steps = torch.arange(tensor.numel()) * 7919 + zlib.crc32(key.encode()) % 1009
            tensor.copy_((steps % 1009 / 1009 + 0.1).view(tensor.shape))  # variances are positive
    safefile.write(path, {k: (t.dtype, tuple(t.shape)) for k, t in tensors.items()}, tensors.values())


def fingerprint(path):
    """The layout, and a sum that depends on the place of every value."""
    entries = safefile.read_header(path)
    layout = sorted((key, str(entry.dtype), entry.shape) for key, entry in entries.items())
    total = 0.0
    for key, tensor in safefile.read_tensors(path, entries):
        weights = (torch.arange(tensor.numel()) * 31 + zlib.crc32(key.encode())) % 97 / 96 - 0.5
        total += float(tensor.flatten().double() @ weights.double())
    return hashlib.sha256(json.dumps(layout).encode()).hexdigest()[:12], round(total, 2)


@pytest.mark.parametrize(
    ("family", "dtype", "quantize"),
    [("tts", "float32", None), ("tts", "float16", "int8"), ("tts", "bfloat16", "int4"), ("turbo", "bfloat16", "int8")],
)
def test_the_format_is_the_one_that_its_number_says(tmp_path, family, dtype, quantize):
    folder = write_checkpoint(tmp_path / "checkpoint", family)
    for file in folder.glob("*.safetensors"):
        patterned(file)
    s3gen_dtype = "bfloat16" if dtype == "bfloat16" else "float32"
    pack(folder, tmp_path / "packed", family, engine=EngineOptions(
        dtype=dtype, s3gen_dtype=s3gen_dtype, quantize=quantize))
    found = {part: fingerprint(tmp_path / "packed" / name) for part, name in NAMES.items()}
    known = KNOWN.get((FORMAT, family, dtype, quantize), {})
    same = known.keys() == found.keys() and all(
        known[part][0] == layout and abs(known[part][1] - total) < TOLERANCE
        for part, (layout, total) in found.items()
    )
    key = (FORMAT, family, dtype, quantize)
    assert same, f"packed checkpoints have changed: raise FORMAT in weights/packed.py, and put in\n    {key}: {found},"
    assert set(json.loads((tmp_path / "packed" / MARKER).read_text())) == {
        "form", "t3", "decoder", "files", "source", "made_by", "format",
    }
