"""Lower bounds on time: bytes and operations counted from the configuration, over the rates measured on this device.

Matrix products, convolutions and attention are counted, and one read of each weight and each live cache entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import clock

WEIGHT_BYTES = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "float16": 2.0,
    "int8": 1.0,
    "int4": 0.5 + 4 / 32,
}  # int4: scales of 32


@dataclass(frozen=True)
class Machine:
    """The best rates of the device, measured in the same run: what it can do when nothing else uses it."""

    read_gb: float  # GB/s of a large sum
    gflops: dict[str, float]  # dtype -> GFLOP/s of a large matrix product on random data

    def seconds(self, flops: float, size: float, dtype: str) -> tuple[float, str]:
        """Returns (the longer of the two bounds, its name)."""
        rate = self.gflops.get(dtype) or self.gflops["float32"]
        compute, read = flops / rate / 1e9, size / self.read_gb / 1e9
        return (compute, "arithmetic") if compute > read else (read, "memory")


def measure(device: str, quick: bool = False) -> Machine:
    import torch

    n = 1 << (22 if quick else 28 if device.startswith("cuda") else 26)
    x = torch.randn(n, device=device)
    read = 4 * n / clock.quickest(lambda x=x: x.sum(), device, 3 if quick else 24) / 1e9
    size = 512 if quick else 8192 if device.startswith("cuda") else 1536
    gflops = {"float32": _product(device, size, torch.float32)}
    # Emulated bf16 is a thousand times slower, so it is measured on a small product.
    gflops["bfloat16"] = _product(device, 256 if emulates_bfloat16(device) else size, torch.bfloat16)
    # A CPU without half-precision units stores weights in float16 and computes in float32.
    gflops["float16"] = gflops["float32" if emulates_bfloat16(device) else "bfloat16"]
    gflops["int8"] = max(_int8_product(device, size), gflops["float32"], gflops["bfloat16"])
    gflops["int4"] = gflops["bfloat16"] if not emulates_bfloat16(device) else gflops["float32"]
    return Machine(read, gflops)


def emulates_bfloat16(device: str) -> bool:
    import torch

    from chatterbox_opt.engine.resolve import half_dtype

    return device == "cpu" and half_dtype(torch.device("cpu")) == "float32"


def _product(device: str, size: int, dtype: Any) -> float:
    import torch

    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return _rate(lambda: a @ b, device, size)


def _int8_product(device: str, size: int) -> float:
    """Returns the rate of the quantised linears' kernel, or of the nearest available; 0 if there is none."""
    import torch

    try:
        if device == "cpu":
            weight = torch.quantize_per_tensor(torch.randn(size, size), 0.05, 0, torch.qint8)
            packed, x = torch.ops.quantized.linear_prepack(weight, None), torch.randn(size, size)
            return _rate(lambda: torch.ops.quantized.linear_dynamic(x, packed, True), device, size)
        a, b = (torch.randint(-127, 127, (size, size), dtype=torch.int8, device=device) for _ in range(2))
        return _rate(lambda: torch._int_mm(a, b), device, size)
    except (RuntimeError, NotImplementedError):
        return 0.0


def _rate(call: Callable[[], Any], device: str, size: int) -> float:
    return 2 * size**3 / clock.quickest(call, device, 8) / 1e9


# ---- T3 ------------------------------------------------------------------------------------------


def t3_weights(t3: Any) -> tuple[int, int]:
    """Returns the number of weights of the backbone's linears and of the head."""
    per_layer = 4 * t3.dim**2 + (2 if t3.is_gpt else 3) * t3.dim * t3.ff
    return t3.layers * per_layer, t3.dim * t3.speech_vocab


def t3_step(t3: Any, precision: str, context: int, batch: int, cache_dtype: str) -> tuple[float, float]:
    """Returns (FLOP, bytes) of one step of `batch` utterances: guidance doubles the rows, not the weights."""
    rows = batch * (1 if t3.is_gpt else 2)
    linears, head = t3_weights(t3)
    head_bytes = WEIGHT_BYTES[cache_dtype]
    cache = 2 * t3.layers * t3.dim * context * WEIGHT_BYTES[cache_dtype] * rows
    size = linears * WEIGHT_BYTES[precision] + head * head_bytes + cache
    flops = rows * (2 * (linears + head) + 4 * t3.layers * t3.dim * context)
    return flops, size


# ---- flow ----------------------------------------------------------------------------------------


def flow(cfg: Any, tokens: int, prompt_tokens: int, steps: int, batch: int = 1) -> float:
    """Returns the FLOP of rendering `tokens` after a prompt: both conformers, then every Euler step over all frames."""
    frames = 2 * (tokens + prompt_tokens)
    rows = 1 if cfg.meanflow else 2  # guidance
    return batch * (_conformer(cfg, tokens + prompt_tokens) + steps * rows * estimator(cfg, frames))


def _conformer(cfg: Any, tokens: int) -> float:
    d = cfg.dim

    def layers(count: int, length: int) -> float:
        per_position = 4 * d * d + 2 * d * cfg.ff + 2 * d * d  # the relative positions are a second key, twice as long
        return count * length * (per_position + 4 * d * length)

    ends = tokens * (d * d + (cfg.pre_lookahead + 1) * d * d + 3 * d * d) + 2 * tokens * (5 * d * d + d * d + 80 * d)
    return 2 * (layers(cfg.layers, tokens) + layers(cfg.up_layers, 2 * tokens) + ends)


def estimator(cfg: Any, frames: int) -> float:
    c, inner = cfg.channels, cfg.est_heads * cfg.est_head_dim

    def unet_block(n_in: int) -> float:
        resnet = 3 * n_in * c + 3 * c * c + n_in * c
        attend = 4 * c * inner + 8 * c * c + 2 * inner * frames
        return resnet + cfg.block_layers * attend

    blocks = unet_block(4 * 80) + cfg.mid_blocks * unet_block(c) + unet_block(2 * c)
    return 2 * frames * (blocks + 3 * 3 * c * c + 80 * c)


# ---- HiFT ----------------------------------------------------------------------------------------


def hift(cfg: Any, frames: int, batch: int = 1) -> float:
    """Returns the FLOP of `frames` mel frames, 50 per second."""
    bins, per_frame, rate = cfg.n_fft + 2, 7 * 80 * cfg.channels, 1
    whole = 1
    for up in cfg.up_rates:
        whole *= up
    for i, up in enumerate(cfg.up_rates):
        n_in, c = cfg.channels >> i, cfg.channels >> (i + 1)
        per_frame += rate * n_in * c * cfg.up_kernels[i]
        rate *= up
        for kernel, dilations in zip(cfg.res_kernels, cfg.res_dilations):
            per_frame += rate * 2 * len(dilations) * c * c * kernel
        per_frame += rate * 2 * len(cfg.source_dilations[i]) * c * c * cfg.source_kernels[i]
        stride = whole // rate
        per_frame += rate * bins * c * (2 * stride if stride > 1 else 1)
    per_frame += rate * (cfg.channels >> len(cfg.up_rates)) * bins * 7
    per_frame += 3 * 80 * cfg.f0_channels + 4 * 3 * cfg.f0_channels**2
    return 2.0 * batch * frames * per_frame


# ---- voice and watermark -------------------------------------------------------------------------


def voice(config: Any, seconds: float) -> float:
    """Returns the FLOP of preparing a voice: speech tokens for T3 and flow, x-vector of 10 s, the speaker's LSTM."""
    cfg, heard = config.s3_tokenizer, min(seconds, 10.0)
    first = min(seconds, config.t3.prompt_tokens / 25)
    tokens = 25 * (heard + first)
    d = cfg.dim
    encoder = tokens * (2 * 3 * cfg.n_mels * d + 3 * d * d)
    encoder += cfg.layers * tokens * (12 * d * d + 31 * d + 2 * d * 25 * heard)
    return 2 * (encoder + _campplus(config.campplus, heard) + _speaker(config.voice_encoder, seconds))


def _campplus(cfg: Any, seconds: float) -> float:
    """Returns multiply-adds. Frames of 10 ms; the 2-D head halves the bins three times, the TDNN the rate once."""
    frames, c, bins = 100 * seconds, cfg.head_channels, cfg.feat_dim
    macs = frames * bins * 9 * c  # conv1
    for _layer in range(2):
        bins //= 2
        macs += frames * bins * (4 * 9 * c * c + c * c)
    macs += frames * (bins // 2) * 9 * c * c
    width, g, mid = cfg.init_channels, cfg.growth, cfg.bottleneck * cfg.growth
    frames /= 2
    macs += frames * width * c * (cfg.feat_dim // 8) * 5
    for layers in cfg.block_layers:
        macs += sum(frames * (mid * (width + j * g) + 3 * g * mid) for j in range(layers))
        width += layers * g
        macs += frames * width * (width // 2)
        width //= 2
    return macs


def _speaker(cfg: Any, seconds: float) -> float:
    """Returns multiply-adds of the LSTM over windows of 1.6 s, 1.3 of them per second."""
    gates = 4 * cfg.hidden * sum((cfg.hidden if i else cfg.n_mels) + cfg.hidden for i in range(cfg.layers))
    return max(1.0, 1.3 * seconds) * 160 * gates


WATERMARK_WEIGHTS = 2.36e6  # of Perth's encoder: convolutions over the frames of a short-time spectrum
WATERMARK_FRAMES = 100  # per second: 32 kHz in hops of 320


def watermark(seconds: float) -> float:
    return 2 * WATERMARK_WEIGHTS * WATERMARK_FRAMES * seconds
