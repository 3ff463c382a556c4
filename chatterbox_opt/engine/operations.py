"""Chooses the operations that each network is handed in each call: by device, options, and for kernels a trial."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from ..models.estimator import Attention
from ..models.flow import FLOW_REFERENCE, Flow, FlowOperations
from ..models.hift import VOCODER_REFERENCE, Conv, Hift, ResBlock, VocoderOperations
from ..models.hift import snake as plain_snake
from ..models.layers import T3_REFERENCE, T3Operations
from ..models.t3 import T3
from ..options import EngineOptions
from .kernels import add_norm, cpu, flash, snake, trial
from .kernels.language import available
from .kernels.toom import ToomConvs
from .resolve import cpu_has_amx


def t3_operations(t3: T3, options: EngineOptions) -> T3Operations:
    """Returns the operations of T3 that run where kernels/step.py has no kernel."""
    weight = t3.speech_emb.weight
    if not weight.is_cpu or t3.config.is_gpt or options.compile == "reduce-overhead":  # torch.compile makes its own
        return T3_REFERENCE
    rotated = dataclasses.replace(T3_REFERENCE, rotate=cpu.rotate)
    if weight.dtype != torch.float32:
        return rotated
    return dataclasses.replace(rotated, norm=cpu.rms_norm, norm_linear=cpu.rms_norm_linear)


def flow_operations(flow: Flow, options: EngineOptions) -> FlowOperations:
    """Returns the flow's operations. Its weights must have their final precision; on a CPU some may be int8."""
    attention = next(part for part in flow.decoder.estimator.modules() if isinstance(part, Attention))
    norm = flow.decoder.estimator.down.blocks[0].norm3
    weight, changes = flow.encoder_proj.weight, dict[str, Callable]()  # in the precision of all that is not int8
    if weight.is_cpu:
        changes |= {"attend_biased": cpu.attend_biased, "mish": cpu.mish}
        if weight.dtype == torch.bfloat16 and not cpu_has_amx():  # with AMX, torch's own takes 0.5 to 0.7 of its time
            changes["attend_all"] = cpu.attend_all
        return dataclasses.replace(FLOW_REFERENCE, **changes)
    if options.wants("flow_attention") and flash.trusted(attention.heads, attention.qkv.weight):
        changes["attend_all"] = flash.attend_all
    if options.wants("add_norm") and add_norm.trusted(norm, weight.dtype):
        changes["add_norm"] = add_norm.add_norm
    return dataclasses.replace(FLOW_REFERENCE, **changes)


def vocoder_operations(hift: Hift, options: EngineOptions) -> VocoderOperations:
    """Returns the vocoder's operations. Its weights must have their final precision."""
    weight, changes = hift.conv_pre.weight, {}
    if weight.device.type == "mps":  # Metal has no double
        changes["phase_dtype"] = torch.float32
    if weight.is_cpu and weight.dtype == torch.float32 and options.short_convs:
        changes["convolve"] = ToomConvs(module for module in hift.modules() if isinstance(module, Conv))
    if weight.is_cuda and options.wants("snake") and available():
        changes["snake"] = tried_snake(hift)
    return dataclasses.replace(VOCODER_REFERENCE, **changes)


def tried_snake(hift: Hift) -> Callable[..., Tensor]:
    """Returns a snake that is the kernel for the numbers of channels that pass its trial."""
    blocks = {block.convs1[0].in_channels: block for block in hift.modules() if isinstance(block, ResBlock)}
    trusted = {channels for channels, block in blocks.items() if _snake_passes(block)}

    def chosen(x: Tensor, scale: Tensor | None = None) -> Tensor:
        return (snake.snake if x.shape[1] in trusted else plain_snake)(x, scale)

    return chosen


def _snake_passes(block: ResBlock) -> bool:
    weight, alpha = block.convs1[0].weight, block.activations1[0].alpha
    channels = weight.shape[1]
    x = torch.linspace(-3, 3, 4096 * channels, device=weight.device).view(1, 1, 4096, channels).permute(0, 3, 1, 2)
    x, tolerance = x.to(weight.dtype), trial.TOLERANCE[weight.dtype]
    shape = f"{channels} channels, {str(weight.dtype).removeprefix('torch.')}"
    # with and without a scale, as a block has them; the second is done in place
    both = [lambda i, f=f: (f(f(x, alpha)),) for f in (snake.snake, plain_snake)]
    return trial.accepts("snake", shape, *both, device=weight.device, tolerance=tolerance)
