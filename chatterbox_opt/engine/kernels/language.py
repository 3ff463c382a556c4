"""Triton and its language; both are None with builds of torch for CPUs, which come without it."""

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None


def available() -> bool:
    return triton is not None
