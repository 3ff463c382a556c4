"""models.flow in MLX: the same names, shapes and order of operations. Results are evaluated."""

from __future__ import annotations

from collections.abc import Iterable

import mlx.core as mx
from torch import Tensor, nn

from ..config import FlowConfig
from ..models.conformer import HalfLinear
from ..models.conformer import WindowConv as TorchWindowConv
from ..models.flow import Flow as TorchFlow
from .arrays import dtype_of, to_mlx, to_torch
from .conformer import Conformer, padding_mask
from .estimator import Estimator
from .weights import Weights


class Flow:
    """The ODE's state stays in torch, on the host: it is small, and another thread may make the next step."""

    def __init__(
        self, config: FlowConfig, named: Iterable[tuple[str, Tensor]], dtype: str = "float32",
        lend_to: TorchFlow | None = None,
    ) -> None:
        """`named`: all tensors of a models.flow.Flow. Linear layers and convolutions run in `dtype`. `lend_to`: the
        network that they belong to, whose tensors become views of MLX's memory."""
        w = Weights(lambda: TorchFlow(config), named, dtype_of(dtype), in_float32=not_in_half)
        self.config = config
        self.guided = not config.meanflow and config.cfg_rate > 0
        self.input_embedding = w["input_embedding.weight"]
        self.speaker_proj = w.linear("spk_embed_affine_layer")
        self.encoder, self.encoder_proj = Conformer(config, w), w.linear("encoder_proj")
        self.estimator = Estimator(config, w)
        if lend_to is not None:
            w.lend(lend_to)

    def conditions(
        self, ids: Tensor, prompt: Tensor, xvector: Tensor, lengths: Tensor | None
    ) -> tuple[tuple[mx.array, mx.array], mx.array | None]:
        """(B, n) tokens, (B, 2n, 80) prompts, (B, 192) x-vectors -> Estimator.constant, (B | 2B, 2n, C) each, and the
        mask of padding. `lengths` None: no row is padded."""
        counts = None if lengths is None else to_mlx(lengths)
        mu = self.encoder_proj(self.encoder(self.input_embedding[to_mlx(ids)], counts)).astype(mx.float32)
        speaker = to_mlx(xvector.float())
        length = mx.maximum(mx.linalg.norm(speaker, axis=1, keepdims=True), 1e-12)
        inputs = [mu, self.speaker_proj(speaker / length), to_mlx(prompt)]
        constant, mask = self.estimator.constant(*inputs), None
        if self.guided:
            unguided = self.estimator.constant(*[mx.zeros_like(x) for x in inputs])
            constant = mx.concatenate([constant[0], unguided[0]]), mx.concatenate([constant[1], unguided[1]])
        if counts is not None:
            mask = padding_mask(2 * counts, prompt.shape[1])[:, None, None]
            mask = mx.concatenate([mask, mask]) if self.guided else mask
        mx.eval(constant, mask)
        return constant, mask

    def time_table(self, span: Tensor) -> mx.array:
        times = self.estimator.time_table(to_mlx(span))
        mx.eval(times)
        return times

    def euler(
        self, x: Tensor, time: mx.array, dt: Tensor, conditions: tuple[mx.array, mx.array], mask: mx.array | None,
        unguided: bool,
    ) -> Tensor:
        """x (B, T, 80), the ODE's state, after one Euler step."""
        rate, state, n = self.config.cfg_rate, to_mlx(x), len(x)
        if self.guided and not unguided:
            conditional, unconditional = mx.split(self.estimator(state, time, conditions, mask), 2)
            velocity = (1 + rate) * conditional - rate * unconditional
        else:
            constant = conditions[0][:n], conditions[1][:n]
            velocity = self.estimator(state, time, constant, None if mask is None else mask[:n])
        return to_torch(state + to_mlx(dt) * velocity)


def not_in_half(flow: nn.Module) -> set[str]:
    """Returns the names of tensors that stay in float32, as in engine.half.in_half."""
    half = {f"{name}." for name, part in flow.named_modules() if isinstance(part, (HalfLinear, TorchWindowConv))}
    return {name for name in flow.state_dict() if name[: name.rindex(".") + 1] not in half}
