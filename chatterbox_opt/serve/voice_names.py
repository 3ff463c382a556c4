"""What voices are called, by clients and as files."""

from __future__ import annotations

import hashlib
import unicodedata

from .errors import ApiError
from .voice_files.form import ID

OPENAI_VOICES = (
    "alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer", "verse",
)
DEFAULT = "default"  # the model's own voice
LONGEST_NAME = 64


def voice_id(name: str, kind: str) -> str:
    """Returns what a voice and its files are called. Kinds of model may share a folder, each with a voice of a name."""
    spelled = folded(name).encode(errors="surrogatepass")
    return "voice_" + hashlib.blake2b(spelled, digest_size=8, person=kind.encode()).hexdigest()


def folded(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip()).casefold()


def check_name(name: str) -> str:
    name = unicodedata.normalize("NFC", name.strip())
    bad = [c for c in name if c in "/\\" or unicodedata.category(c)[0] == "C"]
    if not name or len(name) > LONGEST_NAME or bad:
        message = f"name: 1 to {LONGEST_NAME} letters, digits, blanks and the like are needed, no slashes"
        raise ApiError(400, message, param="name", code="invalid_name")
    if folded(name) == DEFAULT or ID.fullmatch(name):
        raise ApiError(400, f"name: {name!r} is kept for the server's own use", param="name", code="invalid_name")
    return name
