"""A product whose weight a packed checkpoint holds in the form that the engine makes its own of."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class StoredLinear(nn.Module):
    """Stands where a linear will: read when the engine asks, so that no more than a few lie in memory twice."""

    def __init__(self, linear: nn.Linear, read: Callable[[], dict[str, Tensor]]) -> None:
        super().__init__()
        self.in_features, self.bias, self.read = linear.in_features, linear.bias, read
