"""What the parts of a model have captured, in numbers."""

from __future__ import annotations

from .graphs import Captured
from .mel import MelRunner
from .speaking import Speaking
from .tokens import TokenRunner
from .wav import WavRunner


def captured_parts(tokens: Speaking | None, mel: MelRunner | None, wav: WavRunner | None) -> dict[str, Captured]:
    """Returns the captures of each part, by its name in options.CAPTURES; on other devices than CUDA of none."""
    found = {
        "prefill": tokens.prompts.captured if isinstance(tokens, TokenRunner) else None,
        "step": tokens.step.captured if isinstance(tokens, TokenRunner) else None,
        "flow": mel.graphs.captured if mel is not None else None,
        "vocoder": wav.captured if wav is not None else None,
    }
    return {name: captured for name, captured in found.items() if captured is not None and captured.on}


def counts(parts: dict[str, Captured]) -> dict[str, int]:
    return {name: len(captured.keys) for name, captured in parts.items()}


def in_words(captured: Captured) -> str:
    """Returns how many graphs there are, the nodes of the smallest and the largest, and their memory, where known."""
    words = [f"{len(captured.keys)} captured"]
    nodes = [count for count in captured.nodes.values() if count is not None]
    if nodes:
        words.append(f"of {min(nodes)} to {max(nodes)} nodes")
    held = captured.pool_bytes
    if held is not None:
        words.append(f"in {held / 1e6:.0f} MB")
    return " ".join(words)
