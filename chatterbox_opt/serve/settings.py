"""What whoever starts the server chooses. Standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MEGABYTE = 1 << 20
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s,'\"]+|null|\*")  # null: of a page that is a file


@dataclass(frozen=True)
class ServeSettings:
    model_id: str = "english"  # what clients are told the model is called
    host: str = "127.0.0.1"
    port: int = 8004
    api_key: str | None = field(default=None, repr=False)  # None = nobody is asked for one
    voices_dir: str | Path = Path("voices")  # or a URL that fsspec knows
    max_waiting: int = 64  # speeches that wait for rows; one more is told to come back later
    allowed_origins: tuple[str, ...] = ()  # of pages elsewhere that may call; "*" = all
    wyoming_port: int | None = None
    pronounce: Any = None  # Pronunciations of every request
    max_text: int = 100_000  # characters of a request
    max_upload: int = 25 * MEGABYTE  # bytes of a recording
    max_voices: int = 1000  # that are kept
    stall_seconds: float = 60.0  # a client that reads nothing for so long has left
    idle_seconds: float = 300.0  # a WebSocket client that says nothing for so long has left
    drain_seconds: float = 120.0  # what was accepted is finished within this after SIGTERM

    def __post_init__(self) -> None:
        for name, low, high in (
            ("port", 0, 65535), ("max_waiting", 1, 100_000), ("max_text", 1, 10_000_000),
            ("max_upload", 1000, 1 << 32), ("max_voices", 1, 1_000_000),
            ("stall_seconds", 0.01, 86400), ("idle_seconds", 0.01, 86400), ("drain_seconds", 0, 86400),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise ValueError(f"{name}={value!r}: a number from {low} to {high} is needed")
        if self.api_key is not None:
            if not self.api_key.strip():
                raise ValueError("the API key is empty; leave it out, or give one")
            object.__setattr__(self, "api_key", self.api_key.strip())  # as that of a request is
        origins = tuple(origin.strip().rstrip("/").lower() for origin in self.allowed_origins)  # as browsers write them
        for origin in origins:
            if not ORIGIN.fullmatch(origin):
                raise ValueError(f"allow-origin {origin!r}: such as http://localhost:3000 is needed, or * for all")
        object.__setattr__(self, "allowed_origins", origins)
        if self.wyoming_port is not None and not 0 <= self.wyoming_port <= 65535:
            raise ValueError(f"wyoming_port={self.wyoming_port!r}: a number from 0 to 65535 is needed")

    @property
    def max_json(self) -> int:
        """Bytes of a request that is no upload: JSON takes up to 12 for a character, as in "\\ud83d\\ude00"."""
        return 12 * self.max_text + MEGABYTE

    @property
    def max_pauses(self) -> float:
        """Seconds of all pauses that a text may ask for, which come as sound though they are a few characters."""
        return max(60.0, self.max_text / 100)
