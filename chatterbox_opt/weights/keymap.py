"""Converts upstream's state dicts to ours: tables of rules, and one pure function that applies them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Rule(NamedTuple):
    """Keys to convert. `{}` matches any characters in the first source, and is the same in the others."""

    sources: tuple[str, ...]
    target: str | None  # None: the sources are dropped
    fn: Callable[..., Tensor] = lambda tensor: tensor
    keep: bool = False  # leave the sources to a later rule, if they become two tensors


def remap(state: dict[str, Tensor], rules: Iterable[Rule], consume: bool = False) -> dict[str, Tensor]:
    """Applies each rule to every key it matches; other keys pass through. `state` stays unchanged, unless `consume`
    frees each tensor as soon as its result exists."""
    out = state if consume else dict(state)
    for rule in rules:
        pattern = re.compile(re.escape(rule.sources[0]).replace(r"\{\}", "(.+)") + r"\Z")
        for found in [match for key in out if (match := pattern.match(key))]:
            key, groups = found[0], found.groups()
            names = [s.format(*groups) for s in rule.sources]
            missing = [n for n in names if n not in out]
            if missing:
                raise ValueError(f"the checkpoint has {key} but not {', '.join(missing)}")
            tensors = [out[n] if rule.keep else out.pop(n) for n in names]
            if rule.target is not None:
                out[rule.target.format(*groups)] = rule.fn(*tensors)
    return out


def current_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the same under the names that weight norm has in published files: torch's older one, with which upstream
    loads files too, calls its two parts weight_g and weight_v."""
    parts = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}

    def current(name: str) -> str:
        module, _, last = name.rpartition(".")
        return f"{module}.{parts[last]}" if last in parts else name

    return {current(name): value for name, value in state.items()}


def drop(*sources: str) -> list[Rule]:
    return [Rule((s,), None) for s in sources]


def rename(source: str, target: str) -> Rule:
    return Rule((source,), target)


def cat(*tensors: Tensor) -> Tensor:
    return torch.cat(tensors, 0)


def transpose(tensor: Tensor) -> Tensor:
    return tensor.t().contiguous()


def under(prefix: str, rules: Iterable[Rule]) -> list[Rule]:
    """Returns rules for a part with `prefix` added, for the file of the whole model."""
    return [
        Rule(tuple(f"{prefix}.{s}" for s in rule.sources), rule.target and f"{prefix}.{rule.target}", *rule[2:])
        for rule in rules
    ]


# ---- voice encoder, speech tokenizer, x-vector: keys as inside each network ----------------------

VOICE_ENCODER = drop("similarity_weight", "similarity_bias")  # used by the training loss only

S3_TOKENIZER = [
    Rule(
        tuple(f"encoder.blocks.{{}}.attn.{name}.weight" for name in ("query", "key", "value")),
        "encoder.blocks.{}.attn.qkv.weight",
        cat,
    ),
    Rule(
        ("encoder.blocks.{}.attn.query.bias", "encoder.blocks.{}.attn.value.bias"),
        "encoder.blocks.{}.attn.qkv.bias",
        lambda query, value: cat(query, torch.zeros_like(query), value),  # the key has none
    ),
    *drop("_mel_filters", "window"),  # computed
]


def _norm_scale(var: Tensor) -> Tensor:
    return (var.float() + 1e-5).rsqrt()


def _norm_affine(weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Returns an inference batch norm as (2, C): scale and shift."""
    scale = weight * _norm_scale(var)
    return torch.stack([scale, bias - mean * scale])


def _folded_weight(weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, conv: Tensor) -> Tensor:
    scale = _norm_affine(weight, bias, mean, var)[0]
    return conv * scale.view(-1, *[1] * (conv.dim() - 1))


def _folded_bias(weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, conv: Tensor) -> Tensor:
    return _norm_affine(weight, bias, mean, var)[1]


def _norm(name: str) -> tuple[str, ...]:
    return tuple(f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var"))


def fold_norm(conv: str, norm: str, target: str | None = None) -> list[Rule]:
    """Returns rules that fold a batch norm into the convolution before it, which gets a bias."""
    sources = (*_norm(norm), f"{conv}.weight")
    target = target or conv
    return [
        Rule(sources, f"{target}.bias", _folded_bias, keep=True),
        Rule(sources, f"{target}.weight", _folded_weight),
    ]


_DENSE = ("xvector.dense.nonlinear.batchnorm.running_mean", "xvector.dense.nonlinear.batchnorm.running_var")

CAMPPLUS = [
    *drop("{}.num_batches_tracked"),
    *fold_norm("head.conv1", "head.bn1"),
    *fold_norm("head.conv2", "head.bn2"),
    *fold_norm("head.{}.conv1", "head.{}.bn1"),
    *fold_norm("head.{}.conv2", "head.{}.bn2"),
    *fold_norm("head.{}.shortcut.0", "head.{}.shortcut.1", "head.{}.shortcut"),
    *fold_norm("xvector.tdnn.linear", "xvector.tdnn.nonlinear.batchnorm"),
    *fold_norm("xvector.{}.linear1", "xvector.{}.nonlinear2.batchnorm"),
    *fold_norm("xvector.transit3.linear", "xvector.out_nonlinear.batchnorm"),
    # These precede a ReLU and their layer, so they cannot be folded and become scale and shift.
    Rule(_norm("xvector.{}.nonlinear1.batchnorm"), "xvector.{}.nonlinear1.affine", _norm_affine),
    Rule(_norm("xvector.transit{}.nonlinear.batchnorm"), "xvector.transit{}.nonlinear.affine", _norm_affine),
    Rule(
        ("xvector.{}.cam_layer.linear_local.weight",),
        "xvector.{}.cam_layer.taps.weight",
        lambda conv: conv.permute(2, 0, 1).flatten(0, 1),  # (out, in, 3) -> (3 * out, in)
    ),
    # The last batch norm has no weight and bias of its own.
    Rule(_DENSE, "xvector.dense.linear.bias", lambda mean, var: -mean * _norm_scale(var), keep=True),
    Rule(
        (*_DENSE, "xvector.dense.linear.weight"),
        "xvector.dense.linear.weight",
        lambda mean, var, conv: conv * _norm_scale(var)[:, None, None],
    ),
]


# ---- T3 ------------------------------------------------------------------------------------------


def pair_heads(head_dim: int) -> Callable[..., Tensor]:
    """Returns a function that joins q, k and v to one product. In each head of q and k, channel i is placed beside
    i + head_dim/2, with which it is rotated; a dot product does not depend on the order."""

    def fuse(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        paired = [w.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2) for w in (q, k)]
        return torch.cat([*paired, v])

    return fuse


def t3_llama(head_dim: int) -> list[Rule]:
    layer = "tfmr.layers.{}."
    attn, mlp = layer + "self_attn.", layer + "mlp."
    qkv = tuple(f"{attn}{name}_proj.weight" for name in "qkv")
    return [
        Rule(qkv, attn + "qkv_proj.weight", pair_heads(head_dim)),
        Rule((mlp + "gate_proj.weight", mlp + "up_proj.weight"), mlp + "gate_up_proj.weight", cat),
        *drop("tfmr.embed_tokens.weight", "text_head.weight"),  # never read at inference
    ]


T3_GPT2 = [
    *(
        Rule((f"tfmr.h.{{}}.{name}.weight",), f"tfmr.h.{{}}.{name}.weight", transpose)  # GPT-2 stores (in, out)
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ),
    *drop("tfmr.wte.weight", "text_head.weight", "text_head.bias"),
]


# ---- vocoder: keys as inside it ------------------------------------------------------------------


def _weight_norm(g: Tensor, v: Tensor) -> Tensor:
    return torch._weight_norm(v, g, 0)  # upstream's kernel: F0 must be equal to the last bit


def _snake(alpha: Tensor) -> Tensor:
    """Returns Snake's frequency, at least 1e-5 so that it can be divided by: below, its wave is negligible."""
    return torch.where(alpha.abs() < 1e-5, torch.full_like(alpha, 1e-5), alpha)


def _rows(weight: Tensor, alpha: Tensor) -> Tensor:
    return weight * _snake(alpha).view(-1, *[1] * (weight.dim() - 1))


def _columns(weight: Tensor, alpha: Tensor) -> Tensor:
    return weight / _snake(alpha)[:, None]


def _flat(weight: Tensor) -> Tensor:
    """Returns a 1-D convolution's weight as that of a 2-D one of height 1, channels last."""
    return weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)


# Every convolution except those of the F0 net.
_FLAT = ("conv_pre", "ups.{}", "source_downs.{}", "{}.convs1.{}", "{}.convs2.{}", "conv_post")

HIFT = [
    Rule(("{}.parametrizations.weight.original0", "{}.parametrizations.weight.original1"), "{}.weight", _weight_norm),
    # models/hift.py says what is folded where.
    Rule(("{}.convs1.{}.weight", "{}.activations1.{}.alpha"), "{}.convs1.{}.weight", _columns, keep=True),
    Rule(("{}.convs1.{}.weight", "{}.activations2.{}.alpha"), "{}.convs1.{}.weight", _rows, keep=True),
    Rule(("{}.convs1.{}.bias", "{}.activations2.{}.alpha"), "{}.convs1.{}.bias", _rows, keep=True),
    Rule(("{}.convs2.{}.weight", "{}.activations2.{}.alpha"), "{}.convs2.{}.weight", _columns, keep=True),
    *drop("{}.activations2.{}.alpha"),
    Rule(("{}.activations1.{}.alpha",), "{}.activations1.{}.alpha", _snake),
    *(Rule((f"{name}.weight",), f"{name}.weight", _flat) for name in _FLAT),
]


# ---- flow ----------------------------------------------------------------------------------------


def _windows(weight: Tensor) -> Tensor:
    """(out, in, taps) of a convolution -> (out, taps * in) of the product that WindowConv computes."""
    return weight.transpose(1, 2).flatten(1)


def _squeeze(weight: Tensor) -> Tensor:
    return weight.squeeze(-1)


def _flow_attention(name: str) -> list[Rule]:
    parts = [f"encoder.{name}.{{}}.self_attn.linear_{x}" for x in "qkv"]
    return [
        Rule(tuple(f"{p}.{kind}" for p in parts), f"encoder.{name}.{{}}.self_attn.qkv.{kind}", cat)
        for kind in ("weight", "bias")
    ]


def _flow_stage(source: str, target: str, conv: str | None) -> list[Rule]:
    """Returns the rules of a stage, whose parts upstream numbers: 0 resnet, 1 transformer blocks, 2 convolution."""
    s, t = f"decoder.estimator.{source}", f"decoder.estimator.{target}"
    rules = [
        Rule((f"{s}.0.res_conv.weight",), f"{t}.resnet.res_conv.weight", _squeeze),
        rename(f"{s}.0.res_conv.bias", f"{t}.resnet.res_conv.bias"),
    ]
    for kind in ("weight", "bias"):
        rules.append(rename(f"{s}.0.mlp.1.{kind}", f"{t}.resnet.mlp.{kind}"))
        for block in ("block1", "block2"):
            fn = _windows if kind == "weight" else _same
            rules.append(Rule((f"{s}.0.{block}.block.0.{kind}",), f"{t}.resnet.{block}.conv.{kind}", fn))
            rules.append(rename(f"{s}.0.{block}.block.2.{kind}", f"{t}.resnet.{block}.norm.{kind}"))
        rules += [
            rename(f"{s}.1.{{}}.{old}.{kind}", f"{t}.blocks.{{}}.{new}.{kind}")
            for old, new in (("norm1", "norm1"), ("norm3", "norm3"), ("attn1.to_out.0", "attn1.to_out"),
                             ("ff.net.0.proj", "ff_in"), ("ff.net.2", "ff_out"))
        ]
    qkv = tuple(f"{s}.1.{{}}.attn1.to_{x}.weight" for x in "qkv")
    rules.append(Rule(qkv, f"{t}.blocks.{{}}.attn1.qkv.weight", cat))
    if conv:
        rules += [Rule((f"{s}.2.weight",), f"{t}.conv.weight", _windows), rename(f"{s}.2.bias", f"{t}.conv.bias")]
    return rules


def _same(tensor: Tensor) -> Tensor:
    return tensor


FLOW = [
    *_flow_attention("encoders"),
    *_flow_attention("up_encoders"),
    *(
        Rule((f"encoder.{name}.weight",), f"encoder.{name}.weight", _windows)
        for name in ("pre_lookahead_layer.conv1", "pre_lookahead_layer.conv2", "up_layer.conv")
    ),
    *_flow_stage("down_blocks.0", "down", "conv"),
    *_flow_stage("mid_blocks.{}", "mid.{}", None),
    *_flow_stage("up_blocks.0", "up", "conv"),
    Rule(("decoder.estimator.final_block.block.0.weight",), "decoder.estimator.final_block.conv.weight", _windows),
    rename("decoder.estimator.final_block.block.0.bias", "decoder.estimator.final_block.conv.bias"),
    rename("decoder.estimator.final_block.block.2.weight", "decoder.estimator.final_block.norm.weight"),
    rename("decoder.estimator.final_block.block.2.bias", "decoder.estimator.final_block.norm.bias"),
    Rule(("decoder.estimator.final_proj.weight",), "decoder.estimator.final_proj.weight", _squeeze),
]


# ---- the whole of S3Gen's file -------------------------------------------------------------------

S3GEN = [
    *under("tokenizer", S3_TOKENIZER),
    *under("speaker_encoder", CAMPPLUS),
    *under("flow", FLOW),
    *under("mel2wav", HIFT),
]
