"""Finds by trial from how many rows on a CPU product gives each row the same bits, whatever the number of rows.

A library chooses its kernel by the number of rows, and kernels sum in different orders. Which row counts share a kernel
is undocumented and differs by processor and version. The trial uses products whose exact sums are zero: the result is
the rounding error alone, which depends on the order of summation.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

MOST = 32  # rows tried; a product of more rows is cut into blocks of this many


@cache
def least_rows(n: int, k: int, dtype: torch.dtype, bias: bool, threads: int) -> int:
    """Returns the smallest row count from which on, up to `MOST`, a row of x (rows, k) @ W (n, k).T has the same bits
    whatever the row count and its place; `MOST` if no other count agrees with it. Takes 10 to 60 ms, once per shape.
    `threads` is torch's own setting, which may affect the choice of kernel too."""
    x, weight = _summing_to_zero(n, k)
    x, weight = x.to(dtype), weight.to(dtype)
    zero = weight.new_zeros(n) if bias else None
    most = F.linear(x, weight, zero)
    if not torch.equal(F.linear(x.flip(0), weight, zero).flip(0), most):
        return MOST
    least = MOST
    while least > 1 and torch.equal(F.linear(x[: least - 1], weight, zero), most[: least - 1]):
        least -= 1
    return least


def _summing_to_zero(n: int, k: int) -> tuple[Tensor, Tensor]:
    """Returns x (MOST, k) and W (n, k) whose products' terms cancel in pairs, in a random order."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(MOST, k // 2, generator=generator, dtype=torch.float32)
    weight = torch.randn(n, k // 2, generator=generator, dtype=torch.float32)
    again = torch.randperm(k // 2, generator=generator)
    order = torch.randperm(k // 2 * 2, generator=generator)
    x, weight = torch.cat([x, -x[:, again]], 1)[:, order], torch.cat([weight, weight[:, again]], 1)[:, order]
    return F.pad(x, (0, k % 2)), F.pad(weight, (0, k % 2))
