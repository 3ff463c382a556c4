"""Upstream's state dicts -> ours, as data: a table of rules and one pure function over a state dict."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Rule(NamedTuple):
    """`{}` stands for any characters. The first source is looked for; the others follow from it."""

    sources: tuple[str, ...]
    target: str | None  # None: the sources are dropped
    fn: Callable[..., Tensor] = lambda tensor: tensor


def remap(state: dict[str, Tensor], rules: Iterable[Rule]) -> dict[str, Tensor]:
    """Apply each rule to every key it matches; keys no rule names pass through. `state` is left as it is."""
    out = dict(state)
    for rule in rules:
        pattern = re.compile(re.escape(rule.sources[0]).replace(r"\{\}", "(.+)") + r"\Z")
        for key in [k for k in out if pattern.match(k)]:
            groups = pattern.match(key).groups()
            names = [s.format(*groups) for s in rule.sources]
            missing = [n for n in names if n not in out]
            if missing:
                raise ValueError(f"the checkpoint has {key} but not {', '.join(missing)}")
            tensors = [out.pop(n) for n in names]
            if rule.target is not None:
                out[rule.target.format(*groups)] = rule.fn(*tensors)
    return out


def drop(*sources: str) -> list[Rule]:
    return [Rule((s,), None) for s in sources]


def rename(source: str, target: str) -> Rule:
    return Rule((source,), target)


def cat(*tensors: Tensor) -> Tensor:
    return torch.cat(tensors, 0)


def transpose(tensor: Tensor) -> Tensor:
    return tensor.t().contiguous()
