"""Downloads published models; the only file that does. A model in the cache needs no network."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from fnmatch import filter as matching
from pathlib import Path
from typing import Any

from .files import FILES, MEANFLOW, OPTIONAL, REPOS, multilingual_t3

logger = logging.getLogger(__name__)

TIMEOUT = 10.0  # s for the hub's first answer
# Turbo's tokenizer is one file or a few small ones, which differ between repositories.
PARTS = ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json")
TOKENIZER_FILES = ("tokenizer.json", *PARTS)

Wanted = dict[str, tuple[str, ...]]  # role -> names or patterns of its file, preferred first


class HubUnreachable(OSError):
    """The model hub did not answer, or refused."""


class NotInRepository(FileNotFoundError):
    """The hub answered, but the repository lacks a file of the requested kind of model."""


def download(
    family: str,
    *,
    t3_model: str | None = None,
    repo_id: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Returns the local folder of a published model. Makes no request if the cache holds all of it."""
    repo = repo_id or REPOS[family]
    wanted = files_of(family, t3_model, official=repo_id is None)
    folder = _cached(repo, revision, cache_dir, wanted)
    names = _present(folder) if folder else []
    usable = bool(folder) and all(choose(names, wanted).values()) and _spells(names, PARTS[:2])
    extras = [name for role, name in OPTIONAL.items() if role == "conds" or family == "mtl"]
    # The usual repositories are known to have the extras; others may lack them, so their cache counts as whole.
    if folder and usable and (repo_id or ({*extras} <= {*names} and _spells(names, PARTS))):
        return folder
    if family in ("turbo", "nano"):
        extras += TOKENIZER_FILES
    try:
        return _download(repo, revision, cache_dir, wanted, extras)
    except NotInRepository:
        raise
    except Exception as error:  # the library's own, httpx', requests' or the system's
        if folder and usable:
            logger.warning("%s could not be asked (%s); using the cache", repo, _first_line(error))
            return folder
        raise HubUnreachable(_advice(repo, error)) from error


def download_decoder(cache_dir: str | Path | None = None) -> Path:
    """Returns the two-step decoder, a file of Turbo's repository. Makes no request if the cache holds it."""
    repo, wanted = REPOS["turbo"], {"s3gen": twins(MEANFLOW)}
    folder = _cached(repo, None, cache_dir, wanted)
    if folder is None:
        try:
            folder = _download(repo, None, cache_dir, wanted, [])
        except NotInRepository:
            raise
        except Exception as error:  # the library's own, httpx', requests' or the system's
            raise HubUnreachable(_advice(repo, error)) from error
    return folder / (choose(_present(folder), wanted)["s3gen"] or MEANFLOW)


def _present(folder: Path) -> list[str]:
    """Returns the names of its files: in the hub's cache these are links, whose targets may have been deleted."""
    return [path.name for path in folder.iterdir() if path.is_file()]


def files_of(family: str, t3_model: str | None, official: bool) -> Wanted:
    wanted: Wanted = {role: twins(name) for role, name in FILES[family].items()}
    if family == "mtl":
        chosen = multilingual_t3(t3_model)
        wanted["t3"] = (chosen,) if chosen else (FILES["mtl"]["t3"],) if official else (FILES["mtl"]["t3"],
            "t3_*.safetensors")
        wanted["tokenizer"] = (FILES["mtl"]["tokenizer"], "grapheme*.json", "tokenizer.json")
    elif family in ("turbo", "nano"):
        wanted["tokenizer"] = ("tokenizer.json", "vocab.json")
    return wanted


def twins(name: str) -> tuple[str, ...]:
    """Returns the names under which the same tensors may be stored: safetensors or pickle."""
    return (name, name.replace(".safetensors", ".pt")) if name.endswith(".safetensors") else (name,)


def choose(names: Iterable[str], wanted: Wanted) -> dict[str, str | None]:
    """Returns the file for each role among `names`; None if there is none."""
    names = sorted(names)
    found = {role: [hit for pattern in patterns for hit in matching(names, pattern)] for role,
        patterns in wanted.items()}
    return {role: hits[0] if hits else None for role, hits in found.items()}


def _spells(names: Iterable[str], parts: Sequence[str]) -> bool:
    """Whether these files have a tokenizer, and if it is in several files, these parts of it: an interrupted download
    may have left some."""
    return "vocab.json" not in names or "tokenizer.json" in names or {*parts} <= {*names}


def _cached(repo: str, revision: str | None, cache_dir: str | Path | None, wanted: Wanted) -> Path | None:
    """Returns the cache folder that holds any of the files, without a request."""
    from huggingface_hub import try_to_load_from_cache

    for name in (n for patterns in wanted.values() for n in patterns if "*" not in n):
        path = try_to_load_from_cache(repo, name, cache_dir=cache_dir, revision=revision)
        if isinstance(path, str):  # and not the marker of a file known to be absent
            return Path(path).parent
    return None


def _download(
    repo: str, revision: str | None, cache_dir: str | Path | None, wanted: Wanted, extras: list[str]
) -> Path:
    from huggingface_hub import HfApi

    token = os.getenv("HF_TOKEN") or None  # None: the one stored by `hf auth login`
    info = HfApi(token=token).model_info(repo, revision=revision, timeout=TIMEOUT)
    names = [f.rfilename for f in info.siblings or []]
    chosen = choose(names, wanted)
    missing = [role for role, name in chosen.items() if name is None]
    if missing:
        raise NotInRepository(
            f"{repo} has no {' and no '.join(' or '.join(wanted[r]) for r in missing)}; it has {', '.join(names[:12])}"
        )
    patterns = [*chosen.values(), *extras]
    return Path(_fetch(repo_id=repo, revision=revision, cache_dir=cache_dir, allow_patterns=patterns, token=token))


def _fetch(**how: Any) -> str:
    import huggingface_hub
    from huggingface_hub import constants

    try:
        return huggingface_hub.snapshot_download(**how)
    except Exception as error:
        # Some versions of the xet client fail on files that download over plain HTTP.
        if not any(word in str(error).lower() for word in ("xet", "hex hash")):
            raise
        logger.warning("the xet download failed (%s); trying plain HTTP", _first_line(error))
        constants.HF_HUB_DISABLE_XET = True  # the environment variable is read once, at import
        return huggingface_hub.snapshot_download(**how)


def _advice(repo: str, error: Exception) -> str:
    refused = any(word in type(error).__name__ for word in ("Gated", "RepositoryNotFound"))
    hint = "If it is private or gated, set HF_TOKEN. " if refused else ""
    return (
        f"{repo} could not be downloaded ({type(error).__name__}: {_first_line(error)}). {hint}"
        "Use from_local(folder, device) with a folder you have, the English class's from_mini() for the small voice "
        "inside this package, from_random(device) for weights that only make noise, "
        "or fill the cache (HF_HOME) on a machine with a network and copy it: once there, no request is made"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
