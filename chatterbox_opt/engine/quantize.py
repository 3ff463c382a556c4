"""Forms of T3's linear layers: int8, int4, float16 weights, and float32 or bf16 multiplied as suits few rows.

Only products change, and the head's to no fewer than 16 bits; embeddings and norms keep their precision. All forms but
float32 are approximate. In every form a row's result does not depend on the contents of other rows. On a CPU:
- int8 and int4 sum each row in one order (int8 in integers), and bf16 and fp16 multiply as many rows at a time as share
  one order: a row's result is the same to the last bit, alone or among any number of others;
- float32, with or without 16-bit weights, sums in an order that depends on the number of rows: a difference of 1e-6 of
  the largest result, which no later operation rounds to fewer bits.
On other devices the kernel depends on the number of rows, in half precision too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.stored import StoredLinear
from .digits import GROUP, digits_of, half_digits, int4_digits, int8_digits, int8_gpu_digits, quantized_tensor
from .kernels import trial
from .row_counts import MOST, least_rows

logger = logging.getLogger(__name__)

FEW = 16  # rows up to which a product is limited by reading its weights
BLOCK = 128  # rows of a weight that one thread multiplies at a time if x has one row
FIXED = 8  # rows per product in half precision where bits depend on their number: a third slower than 2 on Zen 4
SourceLinear = nn.Linear | StoredLinear


def plain_linear(linear: nn.Linear, few_rows: bool) -> nn.Module:
    """Returns the form that keeps the weight's precision. `few_rows` is options.few_rows."""
    if not linear.weight.is_cpu:
        return linear
    if linear.weight.dtype != torch.float32:
        return FixedRowsLinear(linear)
    return FewRowsLinear(linear) if few_rows else linear


class FewRowsLinear(nn.Module):
    """float32 on a CPU. BLAS takes twice as long for x @ W.T as for W @ x.T if x has two to a dozen rows. For one row
    it reads W a third faster as a batch of blocks."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        n, k = self.weight.shape
        rows = x.numel() // k
        if rows > FEW or (rows == 1 and n % BLOCK):
            return F.linear(x, self.weight, self.bias)
        if rows == 1:  # a transposed row: with the strides of a reshaped one, bmm takes three times as long
            y = torch.bmm(self.weight.view(-1, BLOCK, k), x.reshape(1, k).t().expand(n // BLOCK, k, 1))
        else:
            y = torch.mm(self.weight, x.reshape(rows, k).t()).t().contiguous()
        y = y.view(*x.shape[:-1], n)
        return y if self.bias is None else y + self.bias


class FixedRowsLinear(nn.Module):
    """bf16 and fp16 on a CPU. The order of a product's sums may depend on its number of rows; rounding turns a last bit
    of float32 into a last bit of bf16, and some tokens later another one is drawn. So the rows of a decode step, which
    belong to different requests, are padded with zeros to a number from which on this processor's product gives a row
    the same bits, or, if there is none, to blocks of `FIXED` rows: a row meets the same kernel in any batch. A sequence
    belongs to one request and is not split."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """x (rows, K) or (rows, 1, K), rows of several requests, or (B, T, K), T positions of one request."""
        if x.ndim == 3 and x.shape[1] > 1:
            return F.linear(x, self.weight, self.bias)
        n, k = self.weight.shape
        rows = x.numel() // k
        least, most = self._block_rows()
        x_rows, missing = x.reshape(rows, k), least - (rows % most or most)
        if missing > 0:  # F.pad takes twice as long
            x_rows = torch.cat([x_rows, x.new_zeros(missing, k)])
        if rows <= most:
            y = F.linear(x_rows, self.weight, self.bias)
        else:
            y = torch.cat([F.linear(block, self.weight, self.bias) for block in x_rows.split(most)])
        return y[:rows].view(*x.shape[:-1], n)

    def _block_rows(self) -> tuple[int, int]:
        """Returns the fewest and the most rows per product."""
        least = least_rows(*self.weight.shape, self.weight.dtype, self.bias is not None, torch.get_num_threads())
        return (least, MOST) if least <= FIXED else (FIXED, FIXED)


class Float16WeightLinear(nn.Module):
    """A CPU without bf16 units: weights in 16 bits, which halves the time of few rows; x, sums and result in float32. A
    weight's relative error is at most 2**-11, in bfloat16 it would be 2**-8; below 2**-14 it is off by up to 2**-25.
    Packing clamps infinity and NaN to numbers: a weight that has any makes every result NaN."""

    def __init__(self, linear: SourceLinear) -> None:
        super().__init__()
        weight = digits_of(linear, half_digits)["half"].float()
        bias = None if linear.bias is None else linear.bias.detach().float()
        if not weight.sum().isfinite():
            bias = weight.new_full((len(weight),), torch.nan)
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic_fp16.default(x, self.packed)


@cache
def packs_float16(device: torch.device) -> bool:
    """Whether torch has the product of Float16WeightLinear, as on x86 processors: builds for others lack it."""
    if device.type != "cpu":
        return False
    try:
        linear = nn.Linear(8, 8, device=device, dtype=torch.float32)
        return bool(Float16WeightLinear(linear)(linear.weight.detach()).isfinite().all())
    except (RuntimeError, AttributeError):
        return False


class Int8Linear(nn.Module):
    """CPU: int8 weights with one scale per output, times activations that are quantized with one scale per row. The
    kernels take one range for all rows, so each row is divided by its largest value first."""

    def __init__(self, linear: SourceLinear) -> None:
        super().__init__()
        self.packed = packed_int8(**digits_of(linear, int8_digits))
        self.bias = linear.bias
        self.product = int8_product(self.packed, linear.in_features)

    def forward(self, x: Tensor) -> Tensor:
        # For two rows the overhead of an operation exceeds its computation: there are four, and one more if x is half.
        wide = x if x.dtype == torch.float32 else x.float()
        size = wide.abs().amax(-1, keepdim=True)
        y = self.product(wide / size, self.packed)
        y = y.mul_(size) if self.bias is None else torch.addcmul(self.bias, y, size)
        return y if wide is x else y.to(x.dtype)


def packed_int8(digits: Tensor, scale: Tensor) -> torch.ScriptObject:
    if torch.backends.quantized.engine == "none":  # as torch is built for macOS
        torch.backends.quantized.engine = "qnnpack"
    return torch.ops.quantized.linear_prepack(quantized_tensor(digits, scale), None)


def int8_product(packed: torch.ScriptObject, width: int) -> Callable[[Tensor, torch.ScriptObject], Tensor]:
    """Returns the fastest product that this weight's library has: only fbgemm accepts a given range."""
    try:
        in_fixed_range(torch.zeros(1, width, dtype=torch.float32), packed)
    except RuntimeError:
        return in_pinned_range
    return in_fixed_range


# x (..., K) is between -1 and 1 and is quantized to 0 to 128, or 127: two products with 8-bit weights just fit into the
# 16 bits in which a processor without VNNI adds them. A row of zeros arrives as NaN: it only has to become finite, as
# it is multiplied by 0.


def in_fixed_range(x: Tensor, packed: torch.ScriptObject) -> Tensor:
    return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default(x, 1 / 64, 64, packed)


def in_pinned_range(x: Tensor, packed: torch.ScriptObject) -> Tensor:
    """This product takes the range from the data, so a row with +1 and -1 is appended."""
    flat = x.reshape(-1, x.shape[-1]).nan_to_num()
    y = torch.ops.quantized.linear_dynamic.default(torch.cat([flat, pin(x.shape[-1])]), packed, True)[:-1]
    return y.view(*x.shape[:-1], -1)


@cache
def pin(width: int) -> Tensor:
    with torch.inference_mode(False):
        return F.pad(torch.tensor([[1.0, -1.0]], dtype=torch.float32), (0, width - 2))


class Int8WeightLinear(nn.Module):
    """CUDA and MPS: int8 weights with one scale per output, times bf16 activations."""

    def __init__(self, linear: SourceLinear) -> None:
        super().__init__()
        held = digits_of(linear, int8_gpu_digits)
        self.register_buffer("weight", held["digits"], persistent=False)
        self.register_buffer("scale", held["scale"], persistent=False)
        self.bias = linear.bias
        self.product = self._quicker() if has_int8_product(self.weight.device) else unpacked_product

    def _quicker(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Returns torch's product; on CUDA only if it passes a trial, as kernels do."""
        own, weight = torch._weight_int8pack_mm, self.weight
        if not weight.is_cuda:
            return own
        x = torch.linspace(-1, 1, 2 * weight.shape[1], device=weight.device, dtype=torch.float32)
        x = x.view(2, -1).to(torch.bfloat16)
        sides = [lambda i, f=f: (f(x, weight, self.scale),) for f in (own, unpacked_product)]
        shape, tolerance = f"{weight.shape[0]}x{weight.shape[1]}, 2 rows", trial.TOLERANCE[x.dtype]
        right = trial.accepts("int8 product", shape, *sides, device=weight.device, tolerance=tolerance)
        return own if right else unpacked_product

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        y = self.product(flat, self.weight, self.scale).view(*x.shape[:-1], -1).to(x.dtype)
        return y if self.bias is None else y + self.bias


@cache
def has_int8_product(device: torch.device) -> bool:
    """Whether torch has an int8 product on the device: on CUDA from torch 2.9 on."""
    there = torch._C._dispatch_has_kernel_for_dispatch_key("aten::_weight_int8pack_mm", device.type.upper())
    if not there:
        logger.warning("torch %s has no int8 product on %s: it saves memory there, not time", torch.__version__, device)
    return there


def unpacked_product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return F.linear(x, weight.to(x.dtype)) * scale


class Int4Linear(nn.Module):
    """4-bit weights in groups of 32 with a scale and an offset each, times bf16 activations."""

    def __init__(self, linear: SourceLinear) -> None:
        super().__init__()
        held = digits_of(linear, int4_digits)
        pairs, table = held["digits"], held["scale"]
        if pairs.is_cpu:
            digits = torch.stack([pairs >> 4, pairs & 15], -1).flatten(1).to(torch.int32)
            packed = torch._convert_weight_to_int4pack_for_cpu(digits, 1)
            self.product = torch._weight_int4pack_mm_for_cpu
        else:
            packed = torch._convert_weight_to_int4pack(pairs, 8)
            self.product = torch._weight_int4pack_mm
        self.register_buffer("packed", packed, persistent=False)
        self.register_buffer("table", table, persistent=False)
        self.in_features, self.bias = linear.in_features, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        y = self.product(flat, self.packed, GROUP, self.table).view(*x.shape[:-1], -1).to(x.dtype)
        return y if self.bias is None else y + self.bias
