"""The libraries that write a language's numbers, dates and money as words. Each is loaded when it is first asked for,
once per language for all threads."""

from __future__ import annotations

import importlib.util
import logging
import re
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

from ..files import cache_folder

LANGUAGES = {  # library -> the languages of this package that it knows
    "wetext": ("en", "zh", "ja"),
    "nemo": ("en", "ja", "ar", "de", "es", "fr", "it", "ko", "pt", "sv"),  # without those it got wrong in every test
}
MODULES = {"wetext": "wetext", "nemo": "nemo_text_processing"}
INSTALL = {"wetext": "pip install 'chatterbox-opt[text]'", "nemo": "pip install nemo_text_processing"}

_lock = threading.Lock()  # neither library claims to be thread-safe


def choose(language: str, spoken: bool | str) -> str:
    """Returns a library's name: `spoken` itself, or for True the lightest one installed that knows the language."""
    if spoken is not True and spoken not in LANGUAGES:
        raise ValueError(f"spoken={spoken!r}: True, False, {', '.join(map(repr, LANGUAGES))} are known")
    named = LANGUAGES if spoken is True else (spoken,)
    knowing = [name for name in named if language in LANGUAGES[name]]
    if not knowing:
        known = sorted({code for name in named for code in LANGUAGES[name]})
        raise ValueError(f"spoken={spoken!r}: no library here reads {language!r} out; known are {', '.join(known)}")
    there = [name for name in knowing if importlib.util.find_spec(MODULES[name])]
    if not there:
        raise ValueError(f"spoken={spoken!r} needs a library for {language!r}: {INSTALL[knowing[0]]}")
    return there[0]


def reader(language: str, library: str) -> Callable[[str], str]:
    """Returns a function from text to text in words, which raises what the library raises for text it cannot handle.
    Raises RuntimeError if the library cannot be loaded: no text could be read then, and nobody would know why."""
    with _lock:
        try:
            normalize = (_wetext if library == "wetext" else _nemo)(language)
        except Exception as error:  # of a broken installation or a folder that cannot be written
            what = f"{library} cannot be loaded for {language!r} ({type(error).__name__}: {error})"
            raise RuntimeError(f"{what}; see that {_remedy(library)}, or leave spoken= out") from error

    def read(text: str) -> str:
        with _lock:
            return normalize(text)

    return read


def _remedy(library: str) -> str:
    written = f"{_grammars()} can be written and " if library == "nemo" else ""
    return f"{written}the installation is whole ({INSTALL[library]})"


@cache
def _wetext(language: str) -> Callable[[str], str]:
    from wetext import Normalizer

    normalizer = Normalizer(lang=language, operator="tn")
    return lambda text: re.sub(r'\\(["\\])', r"\1", normalizer.normalize(text))  # it escapes quotes and backslashes


@cache
def _nemo(language: str) -> Callable[[str], str]:
    from nemo_text_processing.text_normalization.normalize import Normalizer

    logging.getLogger("NeMo-text-processing").setLevel(logging.ERROR)  # otherwise it logs a line per text
    _grammars().mkdir(parents=True, exist_ok=True)
    normalizer = Normalizer(input_case="cased", lang=language, cache_dir=str(_grammars()))
    return lambda text: normalizer.normalize(text, punct_post_process=True)


def _grammars() -> Path:
    """Returns the folder of compiled grammars: building them takes half a minute."""
    return cache_folder() / "nemo"
