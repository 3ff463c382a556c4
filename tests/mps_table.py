"""What runs on MPS by torch's own table of operations, which is part of its wheels for every system."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
import torchgen
import yaml
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TABLE = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
ANY_DEVICE = ("CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional", "CompositeImplicitAutograd")


@cache
def table() -> dict[str, dict]:
    entries = yaml.safe_load(TABLE.read_text())
    known = {entry["func"].split("(")[0]: entry for entry in entries}
    made = [name.strip() for entry in entries for name in entry.get("autogen", "").split(",")]
    return known | {name: {"dispatch": dict.fromkeys(ANY_DEVICE)} for name in made if name and name not in known}


def runs_on_mps(name: str) -> bool:
    """`name` as in the table: "add.Tensor"."""
    entry = table()[name]
    if "structured_delegate" in entry:
        return runs_on_mps(entry["structured_delegate"])
    if "dispatch" not in entry:  # composed of others, which are seen themselves
        return True
    keys = {key.strip() for keys in entry["dispatch"] for key in keys.split(",")}
    return not keys.isdisjoint({"MPS", *ANY_DEVICE})


class Recorder(TorchDispatchMode):
    """Records the names of operations, as in the table, and of those that return float64, which Metal lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.doubles: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        namespace, _, name = func._schema.name.partition("::")
        name += f".{func._schema.overload_name}" if func._schema.overload_name else ""
        name = name if namespace == "aten" else f"{namespace}::{name}"
        self.seen.add(name)
        with self:  # in inference mode a composed operation is not split up
            out = func.decompose(*args, **(kwargs or {}))
        if out is NotImplemented:
            out = func(*args, **(kwargs or {}))
        if any(torch.is_tensor(leaf) and leaf.dtype == torch.float64 for leaf in tree_leaves(out)):
            self.doubles.add(name)
        return out

    @property
    def not_on_mps(self) -> set[str]:
        return {name for name in self.seen if "::" in name or not runs_on_mps(name)}
