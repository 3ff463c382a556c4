"""16 kHz log-mel -> 25 Hz speech tokens: a Whisper-like encoder with FSMN memory, then eight ternary digits.

Recordings of different length form a batch without padding: their frames are concatenated, so that linear layers get
one tall matrix, and only attention and memory treat each recording separately.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import S3TokenizerConfig

WINDOW = 3000  # mel frames, 30 s: what the encoder was trained on
STRIDE = 2600  # longer recordings are read in windows that overlap by 4 s
HALF_OVERLAP = 50  # tokens, 2 s, dropped on either side of a seam
WINDOWS_AT_ONCE = 8  # bounds the widest activation at 120 MB
MEMORY = 31  # taps of the FSMN filter, over tokens
ROPE_THETA = 10_000.0
DIGITS = 8  # of base 3
TANH_SCALE = 0.9990000128746033  # keeps the rounding of a saturated tanh inside -1..1


@functools.lru_cache(maxsize=16)
def _rope(head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns cosine and sine, (WINDOW / 4, 1, head_dim / 2) each: dimension i is rotated with i + head_dim / 2."""
    with torch.inference_mode(False), torch.device("cpu"):
        frequency = 1.0 / ROPE_THETA ** (torch.arange(0, head_dim, 2).float() / head_dim)
        angle = torch.outer(torch.arange(WINDOW // 4).float(), frequency)[:, None]
        return angle.cos().to(device), angle.sin().to(device)


# (v (T, dim), weight (dim, 1, MEMORY)) -> (T, dim): each channel filtered over time, plus itself
Memory = Callable[[Tensor, Tensor], Tensor]


def memory(v: Tensor, weight: Tensor) -> Tensor:
    """As a depthwise convolution."""
    return F.conv1d(v.t()[None], weight, padding=MEMORY // 2, groups=len(weight))[0].t() + v


def memory_by_taps(v: Tensor, weight: Tensor) -> Tensor:
    """As one multiply-add per tap, for a CPU, where a depthwise convolution takes three times as long."""
    taps = weight[:, 0].t().contiguous()
    padded = F.pad(v, (0, 0, MEMORY // 2, MEMORY // 2))
    out = v.clone()
    for i in range(MEMORY):
        out.addcmul_(padded[i : i + len(v)], taps[i])
    return out


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)  # upstream's key has no bias: that third is zero
        self.out = nn.Linear(dim, dim)
        self.fsmn_block = nn.Conv1d(dim, dim, MEMORY, groups=dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, lengths: Sequence[int], memory: Memory) -> Tensor:
        """(L, dim) -> (L, dim); L is the sum of `lengths`, cos and sin are (L, 1, head_dim / 2)."""
        qk, v = self.qkv(x).split((2 * x.shape[1], x.shape[1]), 1)
        near, far = qk.view(len(x), 2 * self.heads, -1).chunk(2, -1)
        q, k = torch.cat([near * cos - far * sin, far * cos + near * sin], -1).transpose(0, 1).chunk(2)
        heads = v.view(len(x), self.heads, -1).transpose(0, 1)  # (heads, L, head_dim), as q and k
        seen = [
            F.scaled_dot_product_attention(a[None], b[None], c[None])[0]
            for a, b, c in zip(q.split(lengths, 1), k.split(lengths, 1), heads.split(lengths, 1))
        ]
        remembered = [memory(part, self.fsmn_block.weight) for part in v.split(lengths)]
        return self.out(torch.cat(seen, 1).transpose(0, 1).reshape(len(x), -1)) + torch.cat(remembered)


class Mlp(nn.Sequential):
    def __init__(self, dim: int) -> None:
        super().__init__(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def hidden(self, x: Tensor) -> Tensor:
        """(L, dim) -> (4 dim, L rounded up to a multiple of 16)."""
        # Transposed: MKL is an eighth faster if the number of rows is a multiple of 16.
        x = F.pad(x, (0, 0, 0, -len(x) % 16))
        return F.gelu(torch.addmm(self[0].bias[:, None], self[0].weight, x.t()))

    def forward(self, x: Tensor) -> Tensor:
        """(L, dim) -> (L, dim)."""
        return torch.addmm(self[2].bias[:, None], self[2].weight, self.hidden(x)).t()[: len(x)]


class Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(dim, heads)
        self.attn_ln = nn.LayerNorm(dim)
        self.mlp = Mlp(dim)
        self.mlp_ln = nn.LayerNorm(dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, lengths: Sequence[int], memory: Memory) -> Tensor:
        """(L, dim) -> (L, dim), without the MLP."""
        return x + self.attn(self.attn_ln(x), cos, sin, lengths, memory)


class Encoder(nn.Module):
    def __init__(self, cfg: S3TokenizerConfig) -> None:
        super().__init__()
        self.head_dim = cfg.dim // cfg.heads
        self.conv1 = nn.Conv1d(cfg.n_mels, cfg.dim, 3, stride=2, padding=1)
        self.conv2 = nn.Conv1d(cfg.dim, cfg.dim, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Block(cfg.dim, cfg.heads) for _ in range(cfg.layers))

    def forward(
        self, mels: Sequence[Tensor], memory: Memory = memory
    ) -> tuple[Tensor, Tensor, nn.Linear, list[int]]:
        """Mels (n_mels, T) each, T at most WINDOW -> the frames (L, dim) of all of them without the last MLP's output;
        that MLP's hidden layer (4 dim, L or more) and its output layer; the number of frames of each mel."""
        rows = [F.gelu(self.conv2(F.gelu(self.conv1(mel[None]))))[0].t() for mel in mels]
        lengths = [len(row) for row in rows]
        x = torch.cat(rows)
        cos, sin = (torch.cat([t[:n] for n in lengths]).to(x.dtype) for t in _rope(self.head_dim, x.device))
        for block in self.blocks[:-1]:
            x = block(x, cos, sin, lengths, memory)
            x = x + block.mlp(block.mlp_ln(x))
        last = self.blocks[-1]
        x = last(x, cos, sin, lengths, memory)
        return x, last.mlp.hidden(last.mlp_ln(x)), last.mlp[2], lengths


class Codebook(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project_down = nn.Linear(dim, DIGITS)

    def forward(self, x: Tensor, inner: Tensor, outer: nn.Linear) -> Tensor:
        """Returns the ids (L,) of x + outer(inner), where x is (L, dim) and inner (4 dim, L or more)."""
        # All is linear from here to the digits: multiplying the weights first saves a twentieth of all the work.
        down = self.project_down
        sums = down(x + outer.bias) + (down.weight @ outer.weight @ inner).t()[: len(x)]
        digits = (sums.float().tanh() * TANH_SCALE).round().long() + 1
        return (digits * 3 ** torch.arange(DIGITS, device=x.device)).sum(1)


class Quantizer(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self._codebook = Codebook(dim)

    def forward(self, x: Tensor, inner: Tensor, outer: nn.Linear) -> Tensor:
        return self._codebook(x, inner, outer)


class S3Tokenizer(nn.Module):
    def __init__(self, cfg: S3TokenizerConfig) -> None:
        super().__init__()
        self.encoder = Encoder(cfg)
        self.quantizer = Quantizer(cfg.dim)

    def forward(self, mels: Sequence[Tensor], memory: Memory = memory) -> list[Tensor]:
        """Log-mels (128, T) of any length -> the ids of each, (ceil(T / 4),) up to 30 s."""
        dtype = self.encoder.conv1.weight.dtype
        windows = [split_windows(mel.to(dtype)) for mel in mels]
        flat = [window for parts in windows for window in parts]
        ids: list[Tensor] = []
        for start in range(0, len(flat), WINDOWS_AT_ONCE):
            *values, lengths = self.encoder(flat[start : start + WINDOWS_AT_ONCE], memory)
            ids += self.quantizer(*values).split(lengths)
        found = iter(ids)
        return [join_windows([next(found) for _ in parts]) for parts in windows]


def split_windows(mel: Tensor) -> list[Tensor]:
    length = mel.shape[1]
    if length <= WINDOW:
        return [mel]
    # Upstream's library starts another window where the last one has reached the end, and loses up to 2 s there.
    return [mel[:, i : i + WINDOW] for i in range(0, length - (WINDOW - STRIDE), STRIDE)]


def join_windows(ids: Sequence[Tensor]) -> Tensor:
    """Ids of overlapping windows -> one row; the seams are in the middle of each overlap."""
    last = len(ids) - 1
    return torch.cat([
        row[HALF_OVERLAP if i else 0 : len(row) - HALF_OVERLAP if i < last else len(row)] for i, row in enumerate(ids)
    ])
