"""A recipe: a model family's settings for one command, as TOML.

    family = "ReluLLaMA"                 # whom it is for
    models = ["..."]                     # checkpoints it was written for
    measured = "not run"                 # what was seen at full size, or that it was not run
    text = "a million tokens of ..."     # what to run it on, for people to read
    [options]                            # defaults of the command's options, under their names
    target_recall = 0.99

It decides nothing the command line says. Unknown keys and values of the wrong type are refused.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from powerinfer_py.errors import FileFormatError, printable

# Options that a command's recipes may set, and the types they may give them.
Options = Mapping[str, tuple[type, ...]]
_ABOUT: Options = {
    "family": (str,),
    "models": (list,),
    "measured": (str,),
    "text": (str,),
    "options": (dict,),
}
_REQUIRED = ("family", "measured", "options")
_MAX_BYTES = 1 << 16


def read_recipe(path: Path, known: Options) -> dict[str, Any]:
    """The recipe's options by name. Raises FileFormatError for a file that is no recipe for options `known`."""
    try:
        with path.open("rb") as file:
            recipe = tomllib.loads(file.read(_MAX_BYTES).decode())
    except OSError as error:
        raise FileFormatError(f"cannot read: {error.strerror or error}", path=path) from None
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"is no TOML: {printable(str(error))}", path=path) from None
    _check(path, "", recipe, _ABOUT)
    if missing := [name for name in _REQUIRED if name not in recipe]:
        raise FileFormatError(f"key {missing[0]} is missing", path=path)
    options: dict[str, Any] = recipe["options"]
    _check(path, "options.", options, known)
    return options


def _check(path: Path, prefix: str, values: Mapping[str, Any], known: Options) -> None:
    for name, value in values.items():
        if name not in known:
            raise FileFormatError(
                f"unknown key {printable(prefix + name)}, expected one of {', '.join(known)}", path=path
            )
        if not isinstance(value, known[name]) or isinstance(value, bool):
            kinds = " or ".join(kind.__name__ for kind in known[name])
            raise FileFormatError(f"{prefix}{name} is {printable(repr(value))}, expected {kinds}", path=path)
