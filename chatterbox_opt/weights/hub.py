"""The only downloader. The cache first: a model that was used once needs no network again."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from .files import FILES, OPTIONAL, REPOS, multilingual_t3

logger = logging.getLogger(__name__)

# Turbo's tokenizer is a handful of files that only its repository names; it is small, so all of them are taken.
PATTERNS = ("*.json", "*.txt", "*.model")


class HubUnreachable(OSError):
    """The model hub did not answer, or refused."""


def download(
    family: str, *, t3_model: str | None = None, repo_id: str | None = None, revision: str | None = None
) -> Path:
    """The local folder of a published model, downloaded where the cache does not hold it whole."""
    from huggingface_hub import snapshot_download

    repo = repo_id or REPOS[family]
    wanted = dict(FILES[family])
    if family == "mtl":
        wanted["t3"] = multilingual_t3(t3_model)
    patterns = [*wanted.values(), *OPTIONAL.values()]
    if "tokenizer" not in wanted and family != "vc":
        patterns += PATTERNS
    how: dict[str, Any] = dict(
        repo_id=repo, revision=revision, allow_patterns=patterns, token=os.getenv("HF_TOKEN") or None
    )
    try:
        folder = Path(snapshot_download(local_files_only=True, **how))
        if all((folder / name).exists() for name in wanted.values()):
            return folder
    except Exception as error:  # whatever the library calls an empty cache
        logger.debug("%s is not in the cache: %s", repo, error)
    try:
        return Path(_fetch(snapshot_download, how))
    except Exception as error:
        raise HubUnreachable(
            f"{repo} could not be downloaded ({error.__class__.__name__}: {_first_line(error)}). "
            "Use from_local(folder, device) with a folder you have, from_random(device) for weights that only make "
            "noise, or fill the cache (HF_HOME) on a machine with a network: once there, no request is made"
        ) from error


def _fetch(snapshot_download: Any, how: dict[str, Any]) -> str:
    try:
        return snapshot_download(**how)
    except Exception as error:
        if not any(word in str(error).lower() for word in ("xet", "hex hash")):
            raise
        logger.warning("the xet download failed (%s); trying plain HTTP", _first_line(error))
        import huggingface_hub.constants as constants

        constants.HF_HUB_DISABLE_XET = True  # the environment variable is read once, at import
        return snapshot_download(**how)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
