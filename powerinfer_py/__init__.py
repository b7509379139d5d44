"""powerinfer-py: inference of language models whose FFNs fire sparsely, on a PC whose GPU is too small for the model.

    from powerinfer_py import LLM, SamplingParams

Importing this package is cheap; torch is imported when a model is loaded.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from powerinfer_py.config import SamplingParams
    from powerinfer_py.errors import PowerInferError
    from powerinfer_py.generation.completion import Completion
    from powerinfer_py.generation.llm import LLM

    __version__: str

__all__ = ["LLM", "Completion", "PowerInferError", "SamplingParams", "__version__"]

_HOMES = {
    "LLM": "powerinfer_py.generation.llm",
    "Completion": "powerinfer_py.generation.completion",
    "PowerInferError": "powerinfer_py.errors",
    "SamplingParams": "powerinfer_py.config",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module 'powerinfer_py' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def _version() -> str:
    # Reading installed metadata takes 30 ms, which only those who ask for the version should pay.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("powerinfer-py")
    except PackageNotFoundError:
        return "0+uninstalled"
