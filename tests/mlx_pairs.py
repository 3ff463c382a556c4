"""The same T3 in torch and in MLX, and the logits of both for one history."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import mlx.core as mx
import torch
from torch import Tensor, nn

from chatterbox_opt.engine.prefix import Prefix
from chatterbox_opt.mlx.arrays import to_mlx, to_torch
from chatterbox_opt.mlx.cache import Decode, Prefill, RowCache
from chatterbox_opt.mlx.prefix import Prefixes
from chatterbox_opt.mlx.t3 import T3 as MlxT3
from chatterbox_opt.models.t3 import T3


def of_torch(t3: T3, dtype: str = "float32", quantize: str | None = None) -> MlxT3:
    return MlxT3(t3.config, t3.state_dict().items(), dtype, quantize)


def every_tensor_matters(network: nn.Module, result: Callable[[nn.Module], Tensor]) -> None:
    """Checks that `result` changes with each tensor: one that was left out would change nothing."""
    before = result(network)
    for name in network.state_dict():
        other = copy.deepcopy(network)
        other.state_dict()[name].mul_(1.5)
        assert not torch.equal(result(other), before), name


def mlx_logits(t3: MlxT3, cond, ids: Tensor, speech: Sequence[int]) -> Tensor:
    """The same by prefill and a step per token."""
    rows, scale = 1 if t3.config.is_gpt else 2, t3.config.head_dim**-0.5
    prefix: Prefix = Prefixes(t3, keep=False).get(cond)
    prompt, cache = Prefill(prefix, scale), RowCache(t3.config, t3.dtype)
    x = t3.text_part(to_mlx(ids), rows)
    hidden = t3(x, mx.full((rows,), prefix.length, dtype=mx.int32), prompt)
    cache.append(prompt.k, prompt.v)
    logits, position = [t3.logits(hidden[:, -1])], prefix.length + x.shape[1]
    cache.grow(position + len(speech))
    for i, token in enumerate(speech):
        positions = mx.full((rows,), position + i, dtype=mx.int32)
        x = t3.embed_speech(mx.array([int(token)]), mx.array([i]))[[0] * rows][:, None]
        logits.append(t3.logits(t3(x, positions, Decode(cache.k, cache.v, positions, scale))[:, 0]))
        mx.eval(logits[-1], cache.k, cache.v)
    return to_torch(mx.stack(logits, axis=1))
