"""Checkpoints whose weights are kept as the engine has them."""

from .make import pack

__all__ = ["pack"]
