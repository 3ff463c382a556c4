"""Packed checkpoints, which store weights in the form that the engine uses."""

from .make import pack

__all__ = ["pack"]
