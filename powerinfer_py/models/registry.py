"""The architectures this package runs, by the name that files give them."""

from __future__ import annotations

from powerinfer_py.errors import UnsupportedError, printable
from powerinfer_py.models.arcee import ARCEE
from powerinfer_py.models.architecture import Architecture
from powerinfer_py.models.bamboo import BAMBOO
from powerinfer_py.models.falcon import FALCON
from powerinfer_py.models.llama import LLAMA
from powerinfer_py.models.opt import OPT

ARCHITECTURES: dict[str, Architecture] = {
    "llama": LLAMA,
    "bamboo": BAMBOO,
    "falcon": FALCON,
    "opt": OPT,
    "arcee": ARCEE,
}


def architecture_named(name: str) -> Architecture:
    """The declaration called `name`. Raises UnsupportedError, naming it and what is supported."""
    try:
        return ARCHITECTURES[name]
    except KeyError:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedError(f"unknown architecture '{printable(name)}' (supported: {known})") from None
