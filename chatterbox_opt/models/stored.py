"""A linear layer whose weight is still in a packed checkpoint, quantized."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class StoredLinear(nn.Module):
    """A placeholder. The engine replaces one after another and calls `read` for its weight, so that only a few weights
    are in memory twice."""

    def __init__(self, linear: nn.Linear, read: Callable[[], dict[str, Tensor]]) -> None:
        super().__init__()
        self.in_features, self.bias, self.read = linear.in_features, linear.bias, read
