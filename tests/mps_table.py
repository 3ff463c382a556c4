"""What runs on MPS by torch's own table of operations, which its wheels bring along for every system."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
import torchgen
import yaml
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

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
    if "dispatch" not in entry:  # made of others, which are seen by themselves
        return True
    keys = {key.strip() for keys in entry["dispatch"] for key in keys.split(",")}
    return not keys.isdisjoint({"MPS", *ANY_DEVICE})


class Recorder(TorchDispatchMode):
    """Names of operations, and the types of what goes into them and comes out."""

    def __init__(self, device: str = "cpu") -> None:
        """Of the tensors on this kind of device."""
        super().__init__()
        self.device = device
        self.seen: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        values, _ = tree_flatten((args, kwargs, out))
        tensors = [v for v in values if isinstance(v, torch.Tensor) and v.device.type == self.device]
        if not tensors:
            return out
        namespace, _, name = func._schema.name.partition("::")
        name += f".{func._schema.overload_name}" if func._schema.overload_name else ""
        if namespace == "aten":
            self.seen.setdefault(name, set()).update(tensor.dtype for tensor in tensors)
        else:
            self.seen.setdefault(f"{namespace}::{name}", set())
        return out

    @property
    def not_on_mps(self) -> set[str]:
        return {name for name in self.seen if "::" in name or not runs_on_mps(name)}

    def with_type(self, *dtypes: torch.dtype) -> set[str]:
        return {name for name, seen in self.seen.items() if seen & set(dtypes)}