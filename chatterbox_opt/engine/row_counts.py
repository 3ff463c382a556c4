"""From how many rows on the CPU's product gives a row what it gives it among others: asked of the product itself.

A library chooses its kernel by the number of rows, and kernels sum in different orders. Which numbers share one is
written nowhere and differs by processor and version. So products are tried whose sums would be zero if they were exact:
nothing is left of them but the order they were summed in.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

MOST = 32  # rows tried; a product of more is cut into blocks of so many


@cache
def least_rows(n: int, k: int, dtype: torch.dtype, bias: bool, threads: int) -> int:
    """The smallest number from which on, up to `MOST`, a row of x (rows, k) @ W (n, k).T has the same bits whatever the
    number of rows and its place among them; `MOST` if no other number agrees with it. 10 to 60 ms, once per shape.
    `threads` is torch's own setting, which may decide on the kernel too."""
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
    """x (MOST, k) and W (n, k): every second term of a sum takes back an earlier one."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(MOST, k // 2, generator=generator)
    weight = torch.randn(n, k // 2, generator=generator)
    again = torch.randperm(k // 2, generator=generator)
    order = torch.randperm(k // 2 * 2, generator=generator)
    x, weight = torch.cat([x, -x[:, again]], 1)[:, order], torch.cat([weight, weight[:, again]], 1)[:, order]
    return F.pad(x, (0, k % 2)), F.pad(weight, (0, k % 2))
