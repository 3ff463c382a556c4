"""Triton kernels without a GPU: run in the interpreter, or compiled for a device that is not there."""

from __future__ import annotations

import importlib
from contextlib import suppress

import torch
import triton
import triton.language.standard
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from chatterbox_opt.engine.kernels import add_norm, attention, early, flash, linear, sampling, snake

# bytes a program may have
SHARED = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
TYPES = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int64: "*i64", torch.uint8: "*u8",
    int: "i32", float: "fp32",
}  # fmt: skip
PARTS = {  # functions that kernels call; they are not launched
    "_finish", "_turned", "_page", "_add", "_numbers", "_kth", "_edge", "_probabilities", "_keep_top", "_penalized",
}  # fmt: skip
OPTIONS = {"num_warps", "num_stages", "launch_pdl"}


class Interpreted(InterpretedFunction):
    def __call__(self, *args, **named):
        """Called by another kernel. Triton's own version leaves the language patched, and nothing compiles after it."""
        scope = interpreter._patch_lang(self.fn)
        try:
            return self.rewrite()(*args, **named)
        finally:
            if scope is not None:  # Triton 3.2 patches for good
                scope.restore()


def interpret(monkeypatch) -> None:
    """Runs every kernel of the package in the interpreter, with all functions that it calls."""
    with suppress(ImportError):  # of newer versions; at its first import it wants the language as it was
        importlib.import_module("triton.experimental.gluon")
    plain = interpreter._patch_lang_tensor

    def patch_tensor(tensor, *scope):  # numpy no longer makes a number of an array of one, which `range` asks for
        plain(tensor, *scope)
        index = lambda self: int(self.handle.data.item())  # noqa: E731
        scope[0].set_attr(tensor, "__index__", index) if scope else setattr(tensor, "__index__", index)

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch_tensor)
    for module in (add_norm, attention, flash, linear, sampling, snake, triton.language, triton.language.standard):
        for name, value in list(vars(module).items()):
            if isinstance(value, JITFunction):
                monkeypatch.setattr(module, name, Interpreted(value.fn))


class Compiled:
    """Replaces a kernel: a launch compiles it and runs nothing."""

    done: set = set()  # noqa: RUF012  one for all

    def __init__(self, kernel: JITFunction, target: int) -> None:
        self.kernel, self.target = kernel, target

    def __getitem__(self, grid: tuple):
        return self.launch

    def launch(self, *args, **named) -> None:
        from triton.backends.compiler import GPUTarget

        options = {name: named.pop(name) for name in OPTIONS & named.keys()}
        signature, aligned = {}, {}
        for i, (parameter, value) in enumerate(zip(self.kernel.params, args)):
            tensor = isinstance(value, torch.Tensor)
            signature[parameter.name] = TYPES[value.dtype if tensor else type(value)]
            if not parameter.do_not_specialize and (tensor or (isinstance(value, int) and value % 16 == 0)):
                aligned[i,] = [["tt.divisibility", 16]]
        signature |= dict.fromkeys(named, "constexpr")
        key = self.kernel.fn, self.target, str((signature, aligned, named, options))
        if key in self.done:
            return
        source = triton.compiler.ASTSource(self.kernel, signature, constexprs=named, attrs=aligned)
        made = triton.compile(source, target=GPUTarget("cuda", self.target, 32), options=options)
        assert len(made.asm["cubin"]) > 0
        assert made.metadata.shared <= SHARED[self.target]
        self.done.add(key)


def compile_launches(monkeypatch, target: int, modules: list) -> str | None:
    """Makes launches compile for a target. Returns the reason if that is not possible here."""
    try:
        from triton.backends.compiler import GPUTarget
        from triton.backends.nvidia.compiler import get_ptxas

        get_ptxas(target)
        assert GPUTarget
    except Exception as problem:
        return f"triton cannot compile for sm_{target} here: {problem}"
    starts_early = 10 * early.FIRST[0] + early.FIRST[1] <= target
    for module in modules:
        if starts_early and hasattr(module, "early"):
            monkeypatch.setattr(module, "early", lambda device: {"EARLY": True, "launch_pdl": True})
        for name, value in list(vars(module).items()):
            if isinstance(value, JITFunction) and name not in PARTS:
                monkeypatch.setattr(module, name, Compiled(value, target))
    return None
