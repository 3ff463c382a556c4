"""Signatures and defaults of upstream's public API, recorded here and compared live if upstream is installed."""

import importlib
import inspect
import subprocess
import sys

import pytest

import chatterbox_opt

PAIRS = {
    "ChatterboxTTS": ("chatterbox.tts", "OptimizedChatterboxTTS"),
    "ChatterboxMultilingualTTS": ("chatterbox.mtl_tts", "OptimizedChatterboxMultilingualTTS"),
    "ChatterboxTurboTTS": ("chatterbox.tts_turbo", "OptimizedChatterboxTurboTTS"),
    "ChatterboxVC": ("chatterbox.vc", "OptimizedChatterboxVC"),
}
METHODS = (
    "__init__", "from_local", "from_pretrained", "generate", "prepare_conditionals", "get_supported_languages",
    "norm_loudness", "set_target_voice",
)
# In upstream's repository, but not in its wheel.
HEAD = {
    ("ChatterboxMultilingualTTS", "generate", "repetition_penalty"): 1.2,
    ("ChatterboxMultilingualTTS", "from_local", "t3_model"): None,
    ("ChatterboxMultilingualTTS", "from_pretrained", "t3_model"): None,
    ("ChatterboxTurboTTS", "from_local", "nano"): False,
    ("ChatterboxTurboTTS", "from_pretrained", "nano"): False,
    ("ChatterboxTurboTTS", "__init__", "model_label"): "Turbo",
}


def positional(function) -> list:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    return [(p.name, p.default) for p in inspect.signature(function).parameters.values() if p.kind in kinds]


@pytest.mark.parametrize("name", PAIRS)
def test_same_positions_and_defaults_as_upstream(name):
    pytest.importorskip("chatterbox.tts", reason="chatterbox-tts is not installed")
    module, ours = PAIRS[name]
    upstream, mine = getattr(importlib.import_module(module), name), getattr(chatterbox_opt, ours)
    for method in METHODS:
        if not hasattr(upstream, method):
            continue
        wanted, got = positional(getattr(upstream, method)), positional(getattr(mine, method))
        for i, (argument, default) in enumerate(wanted):
            default = HEAD.get((name, method, argument), default)
            assert got[i] == (argument, default), f"{name}.{method} at position {i}"
    for constant in ("ENC_COND_LEN", "DEC_COND_LEN"):
        assert getattr(mine, constant) == getattr(upstream, constant)


@pytest.mark.parametrize(("name", "method", "argument"), HEAD)
def test_what_only_upstreams_head_has(name, method, argument):
    mine = getattr(chatterbox_opt, PAIRS[name][1])
    assert (argument, HEAD[name, method, argument]) in positional(getattr(mine, method))


def test_import_is_light():
    heavy = {"torch", "numpy", "tokenizers", "fastapi", "uvicorn", "starlette", "pydantic", "wyoming"}
    code = f"import sys, chatterbox_opt, chatterbox_opt.cli; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", sorted(set(chatterbox_opt.__all__) - {"__version__"}))
def test_every_public_name_resolves(name):
    assert getattr(chatterbox_opt, name) is not None


def test_import_swap():
    for module, name in (("tts", "ChatterboxTTS"), ("mtl_tts", "ChatterboxMultilingualTTS"),
                         ("tts_turbo", "ChatterboxTurboTTS"), ("vc", "ChatterboxVC")):
        assert getattr(importlib.import_module(f"chatterbox_opt.{module}"), name) is getattr(chatterbox_opt, name)
    with pytest.raises(AttributeError, match="it offers"):
        _ = chatterbox_opt.nothing_of_the_kind
