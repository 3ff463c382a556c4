"""A parser whose help has every default, and whose errors have the command's own usage and what was meant."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any


class Help(argparse.HelpFormatter):
    """Adds the default where there is one and the text does not have it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        shown = default not in (None, argparse.SUPPRESS) and not isinstance(default, (bool, list, tuple))
        return f"{text} (default: %(default)s)" if shown and "default" not in text else text


class Parser(argparse.ArgumentParser):
    """Commands get it too, as add_parser() makes what it was called on."""

    def __init__(self, *args: Any, **how: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, "formatter_class": Help, **how})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse, but what is left over is an error here: a command would leave it to the program."""
        found, left = super().parse_known_args(args, namespace)
        if left:
            self.error(self._surplus(left))
        return found, left

    def _surplus(self, left: Sequence[str]) -> str:
        unknown = next((word.split("=")[0] for word in left if word.startswith("-")), None)
        if unknown is None:
            what = "the text" if any(action.dest == "text" for action in self._actions) else "a name with blanks"
            return f"too many words: {' '.join(left)}; put {what} in quotes"
        meant = get_close_matches(unknown, self._option_string_actions, 1)
        return f"there is no option {unknown}" + (f"; did you mean {meant[0]}?" if meant else "")
